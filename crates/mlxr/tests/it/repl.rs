//! The chat, on a pseudo-terminal.

use std::path::Path;
use std::process::Command;

use rexpect::process::WaitStatus;
use rexpect::session::{PtySession, spawn_command};

use crate::command::binary;

/// Longest wait for an output that comes in a fraction of it.
const TIMEOUT_MS: u64 = 60_000;
const PROMPT: &str = ">>> ";
const QUESTION: &str = "What is 23 + 45?";

fn chat(home: &Path, args: &[&str]) -> PtySession {
    let mut command = Command::new(binary());
    command.arg("run").args(args).current_dir(home);
    command.env("HOME", home).env("XDG_STATE_HOME", home.join("state"));
    command.env("NO_COLOR", "1").env("TERM", "xterm").env_remove("RUST_LOG");
    let mut session = spawn_command(command, Some(TIMEOUT_MS)).unwrap();
    session.exp_string("/help lists the commands").unwrap();
    session.exp_string(PROMPT).unwrap();
    session
}

/// Ends the chat with Ctrl-D and waits for it.
fn leave(mut session: PtySession) {
    session.send_control('d').unwrap();
    session.exp_eof().unwrap();
}

#[test]
fn a_chat_answers_and_remembers() {
    let home = tempfile::tempdir().unwrap();
    let mut session = chat(home.path(), &["--greedy"]);
    session.send_line("My name is Jonas and I have a dog named Bello.").unwrap();
    session.exp_string("Jonas").unwrap();
    session.exp_string(PROMPT).unwrap();
    session.send_line("What is my dog called?").unwrap();
    session.exp_string("Your dog is called Bello.").unwrap();
    session.exp_string(PROMPT).unwrap();
    leave(session);
}

#[test]
fn ctrl_c_stops_an_answer_but_not_the_chat_and_twice_at_the_prompt_leaves() {
    let home = tempfile::tempdir().unwrap();
    let mut session = chat(home.path(), &["--greedy", "--ignore-eos", "--max-tokens", "100000"]);
    session.send_line(QUESTION).unwrap();
    session.exp_string("= 68").unwrap();
    session.send_control('c').unwrap();
    session.exp_string("stopped; /regenerate answers again").unwrap();
    session.exp_string(PROMPT).unwrap();
    session.send_control('c').unwrap();
    session.exp_string("Ctrl-C again, Ctrl-D or /exit leaves").unwrap();
    session.exp_string(PROMPT).unwrap();
    session.send_control('c').unwrap();
    session.exp_eof().unwrap();
}

#[test]
fn ctrl_c_ends_a_single_answer_with_exit_code_130() {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary());
    command.args(["run", "--greedy", "--ignore-eos", QUESTION]).env("HOME", home.path()).env("TERM", "xterm");
    let mut session = spawn_command(command, Some(TIMEOUT_MS)).unwrap();
    session.exp_string("= 68").unwrap();
    session.send_control('c').unwrap();
    session.exp_eof().unwrap();
    let status = session.process().wait().unwrap();
    assert!(matches!(status, WaitStatus::Exited(_, 130)), "{status:?}");
}

#[test]
fn commands_set_save_and_load() {
    let home = tempfile::tempdir().unwrap();
    let mut session = chat(home.path(), &[]);
    for (line, reply) in [
        ("/set temperature 0", "temperature is 0"),
        ("/set top-p 7", "top_p is 7, but must be"),
        ("/set nonsense 1", "unexpected argument"),
        ("/system You are Captain Finn, a friendly pirate.", "the system message is set"),
        ("Who are you?", "My name is Captain Finn. I am a friendly pirate."),
        ("/save chat.json", "2 messages are in chat.json"),
        ("/clear", "the conversation is forgotten"),
        ("/load chat.json", "2 messages from chat.json"),
        ("/regenerate", "My name is Captain Finn. I am a friendly pirate."),
        ("/undo", "the last message is taken back"),
        ("/regenerate", "there is no message to answer"),
        ("/nope", "unknown command /nope"),
    ] {
        session.send_line(line).unwrap();
        // The terminal shows the line first.
        session.exp_string(line).unwrap();
        session.exp_string(reply).unwrap_or_else(|error| panic!("{line}: {error}"));
        session.exp_string(PROMPT).unwrap();
    }
    leave(session);
    let saved = std::fs::read_to_string(home.path().join("chat.json")).unwrap();
    assert!(saved.contains("\"content\": \"Who are you?\""));
}

#[test]
fn an_image_comes_with_the_next_message() {
    let home = tempfile::tempdir().unwrap();
    let golden = crate::command::repo("golden/vision").canonicalize().unwrap();
    let model = golden.join("llava").display().to_string();
    let image = golden.join("images/small.png").display().to_string();
    let mut session = chat(home.path(), &["--greedy", "--max-tokens", "3", "-v", "-m", &model]);
    for (line, reply) in [
        ("/image nowhere.png", "cannot read the image nowhere.png"),
        (&format!("/image {image}"), "the next message comes with 1 image"),
        ("a", "| seed"),
        ("/save chat.json", "2 messages are in chat.json"),
        ("/load chat.json", "2 messages from chat.json"),
        ("/regenerate", "| seed"),
        ("b", "| seed"),
    ] {
        session.send_line(line).unwrap();
        session.exp_string(reply).unwrap_or_else(|error| panic!("{line}: {error}"));
        session.exp_string(PROMPT).unwrap();
    }
    leave(session);
    let saved = std::fs::read_to_string(home.path().join("chat.json")).unwrap();
    assert_eq!(saved.matches("images/small.png").count(), 1);
}

#[test]
fn inputs_span_lines_and_are_remembered() {
    let home = tempfile::tempdir().unwrap();
    let mut session = chat(home.path(), &["--greedy"]);
    session.send_line("\"\"\"What is").unwrap();
    session.send_line("23 + 45?\"\"\"").unwrap();
    session.exp_string("= 68").unwrap();
    session.exp_string(PROMPT).unwrap();
    leave(session);
    let history = home.path().join(if cfg!(target_os = "macos") {
        "Library/Application Support/mlxr/history"
    } else {
        "state/mlxr/history"
    });
    assert!(std::fs::read_to_string(history).unwrap().contains("23 + 45"));
}
