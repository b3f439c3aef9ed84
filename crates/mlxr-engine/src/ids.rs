//! The names of things the engine keeps track of.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id! {
    /// What a client asked for; ends in exactly one finish event.
    RequestId(u64), "request "
}
id! {
    /// One token stream being extended; a request has one per choice.
    SeqId(u64), "sequence "
}
id! {
    /// One block of the KV arena.
    BlockId(u32), "block "
}
