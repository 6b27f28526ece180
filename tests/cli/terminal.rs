//! The program on a terminal: a prompt that goes on after an error, and progress that only people see.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::process::{Node, component, directory, program, run_with, wait};
use super::text::slow_component;

/// How long anything here may take: a compilation gives way to everything else on the computer.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a terminal sends for the end of the input.
const END_OF_INPUT: u8 = 4;

/// What takes a terminal's line away.
const CLEAR_LINE: &str = "\u{1b}[2K";

/// A program on a terminal of its own.
struct Terminal {
    child: Child,
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    /// What was shown and not waited for yet.
    shown: String,
}

/// The two ends of a new terminal: that of the person, and that of the program.
fn open_terminal() -> (OwnedFd, OwnedFd) {
    let (mut person, mut program) = (-1, -1);
    let size = libc::winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the first two arguments outlive the call, a name and settings are not asked for, and the size
    // is only read.
    let failed =
        unsafe { libc::openpty(&mut person, &mut program, std::ptr::null_mut(), std::ptr::null(), &size) };
    assert_eq!(failed, 0, "no terminal: {}", std::io::Error::last_os_error());
    // SAFETY: the call has just opened both, and nobody else has them.
    let (person, program) = unsafe { (OwnedFd::from_raw_fd(person), OwnedFd::from_raw_fd(program)) };
    // Unlike these two, other handles are not given to programs that other tests start.
    (share(&person), share(&program))
}

fn share(end: &OwnedFd) -> OwnedFd {
    end.try_clone().expect("another handle of a terminal")
}

impl Terminal {
    fn start(command: &mut Command) -> Terminal {
        let (person, program) = open_terminal();
        let ends = command.stdin(share(&program)).stdout(share(&program)).stderr(program);
        let child = ends.env("TERM", "xterm").spawn().expect("the program starts");
        // The command holds the program's end as long as it lives: then the screen would never come to an
        // end.
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        command.stderr(std::process::Stdio::null());
        let (sender, screen) = channel();
        let mut from = File::from(share(&person));
        std::thread::spawn(move || {
            let mut piece = [0; 4_096];
            // A terminal that nobody is left at answers an error.
            while let Ok(length @ 1..) = from.read(&mut piece) {
                if sender.send(piece[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Terminal { child, keyboard: person.into(), screen, shown: String::new() }
    }

    fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).expect("the terminal takes keys");
    }

    /// Types a line and waits until it is on the screen, as terminals echo it.
    fn type_line(&mut self, line: &str) {
        self.press(format!("{line}\n").as_bytes());
        self.wait_for(&format!("{line}\r\n"));
    }

    /// Waits until something is shown; what was shown before it.
    #[track_caller]
    fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.shown.find(text) {
                let rest = self.shown.split_off(at + text.len());
                let mut before = std::mem::replace(&mut self.shown, rest);
                before.truncate(at);
                return before;
            }
            match self.screen.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(piece) => self.shown.push_str(&String::from_utf8_lossy(&piece)),
                Err(RecvTimeoutError::Timeout) => panic!("{text:?} is not shown, but {:?}", self.shown),
                Err(RecvTimeoutError::Disconnected) => panic!("it ended and showed {:?}", self.shown),
            }
        }
    }

    /// Waits for the end; its code, and what was shown since what was waited for last.
    fn end(mut self) -> (Option<i32>, String) {
        let status = wait(&mut self.child);
        while let Ok(piece) = self.screen.recv_timeout(PATIENCE) {
            self.shown.push_str(&String::from_utf8_lossy(&piece));
        }
        (status.code(), self.shown)
    }
}

#[test]
fn a_prompt_answers_tells_what_failed_and_goes_on() {
    let mut terminal = Terminal::start(program().args(["module", "run", &component("notes")]));
    let before = terminal.wait_for("notes.component.wasm: a stored machine in memory. Try `help`.\r\n> ");
    assert!(before.contains("compiling"), "progress is shown: {before:?}");
    let taken_away = before.rfind(CLEAR_LINE) > before.rfind("compiling");
    assert!(taken_away, "and does not stay: {before:?}");

    terminal.type_line("apply milk=two pints");
    assert_eq!(terminal.wait_for("\r\n> "), "two pints");
    // The machine refuses, the machine does not know, and the prompt does not know.
    terminal.type_line("apply nonsense");
    let refused = terminal.wait_for("\r\n> ");
    assert!(refused.starts_with("error: ") && refused.contains("NAME=TEXT is expected"), "{refused:?}");
    terminal.type_line("query eggs");
    assert!(terminal.wait_for("\r\n> ").contains("there is no such note"));
    terminal.type_line("aply milk=none");
    let unknown = terminal.wait_for("\r\n> ");
    assert!(unknown.starts_with("error: ") && unknown.contains("aply"), "{unknown:?}");
    terminal.type_line("query milk");
    assert_eq!(terminal.wait_for("\r\n> "), "two pints");
    terminal.type_line("quit");
    assert_eq!(terminal.end(), (Some(0), String::new()));
}

#[test]
fn the_end_of_the_input_ends_a_prompt_on_a_line_of_its_own() {
    let mut terminal = Terminal::start(program().args(["module", "run", &component("counter")]));
    terminal.wait_for("a resident machine in memory. Try `help`.\r\n> ");
    terminal.type_line("apply 2");
    assert_eq!(terminal.wait_for("\r\n> "), "2");
    terminal.press(&[END_OF_INPUT]);
    assert_eq!(terminal.end(), (Some(0), "\r\n".to_owned()), "the shell's prompt begins a line");
}

#[test]
fn a_machine_that_is_not_created_ends_the_prompt_before_it_begins() {
    let mut command = program();
    command.args(["module", "run", &component("counter"), "--argument", "many"]);
    let (code, shown) = Terminal::start(&mut command).end();
    assert_eq!(code, Some(1), "{shown:?}");
    assert!(shown.contains("not created") && !shown.contains("> "), "{shown:?}");
}

#[test]
fn progress_is_shown_on_a_terminal_and_to_nobody_else() {
    let commands = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(commands.path(), "1\n2\n").expect("it is written");
    let check = || {
        let mut command = program();
        command.args(["module", "check", &component("counter"), "--commands"]).arg(commands.path());
        command
    };
    let mut terminal = Terminal::start(&mut check());
    terminal.wait_for("compiling it twice");
    let (code, shown) = terminal.end();
    assert_eq!(code, Some(0), "{shown:?}");
    assert!(shown.contains("deterministic: no difference was found"), "{shown:?}");
    let piped = run_with(&mut check(), b"");
    assert_eq!(piped.stderr, "");
    assert!(!piped.ok().contains("compiling") && !piped.text().contains('\u{1b}'), "{piped:?}");
    let piped = run_with(program().args(["module", "run", &component("counter")]), b"apply 1\n");
    assert_eq!((piped.ok(), piped.stderr.as_str()), ("1", ""));
}

#[test]
fn a_push_tells_on_a_terminal_that_the_node_compiles() {
    let directory = directory();
    let node = Node::serve(&directory.path().join("data"), &[]);
    let file = directory.path().join("slow.wasm");
    std::fs::write(&file, slow_component(1, 20_000)).expect("it is written");
    let push = ["module", "push", file.to_str().expect("text")];
    let mut terminal = Terminal::start(&mut node.command(push));
    let told = "the node checks and compiles it";
    let before = terminal.wait_for(told);
    assert!(before.contains("slow.wasm"), "what is sent is named first: {before:?}");
    // It moves while it is waited for.
    terminal.wait_for(told);
    let (code, shown) = terminal.end();
    assert_eq!(code, Some(0), "{shown:?}");
    let last = shown.trim_end().lines().last().expect("the digest").to_owned();
    let digest = last.rsplit(CLEAR_LINE).next().expect("the end of it").trim();
    assert!(digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()), "{shown:?}");
}
