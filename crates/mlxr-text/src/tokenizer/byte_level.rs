//! GPT-2's spelling of bytes as printable characters, used by every byte-level BPE vocabulary.
//!
//! Printable Latin-1 bytes stand for themselves; the other 68 are numbered upwards from U+0100.

use std::sync::LazyLock;

/// The character that spells each byte.
pub(crate) static CHARS: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut next = 0x100;
    std::array::from_fn(|b| {
        let printable = matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if printable {
            b as u32
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
    })
});

static BYTES: LazyLock<[Option<u8>; 0x144]> = LazyLock::new(|| {
    let mut bytes = [None; 0x144];
    for (b, &c) in CHARS.iter().enumerate() {
        bytes[c as usize] = Some(b as u8);
    }
    bytes
});

/// The byte a character spells.
pub(crate) fn byte_of(c: char) -> Option<u8> {
    BYTES.get(c as usize).copied().flatten()
}

/// The bytes a token spells, or `None` when one of its characters spells no byte.
pub(crate) fn decode(token: &str) -> Option<Vec<u8>> {
    token.chars().map(byte_of).collect()
}

/// The byte of a byte-fallback token such as `<0x0A>`.
pub(crate) fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() != 2 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(hex, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_character() {
        assert_eq!(CHARS[usize::from(b' ')], 'Ġ');
        assert_eq!(CHARS[usize::from(b'\n')], 'Ċ');
        assert_eq!(CHARS[0xad], '\u{143}');
        for b in 0..=255u8 {
            assert_eq!(byte_of(CHARS[usize::from(b)]), Some(b));
        }
    }

    #[test]
    fn only_two_hex_digits_make_a_fallback_byte() {
        assert_eq!(fallback_byte("<0x0A>"), Some(10));
        assert_eq!(fallback_byte("<0x+A>"), None);
        assert_eq!(fallback_byte("<0xA>"), None);
    }
}
