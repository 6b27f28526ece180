//! The compile process is this test binary, called through a script: see [`child_entry`].

use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;
use crate::machine::guest::World;
use crate::wasm::testing::*;
use crate::wasm::{Module, validate};

/// What the script runs. Does nothing unless the script asked.
#[test]
#[ignore = "it is the program that the other tests here start"]
fn child_entry() {
    let Ok(arguments) = std::env::var("STATEHOUSE_TEST_COMPILE") else { return };
    // SAFETY: the script opened 3 as a copy of its own output, and 1 is open in any process that cargo
    // starts; nothing else in this process owns either.
    let (pipe, mut stdout) = unsafe { (OwnedFd::from_raw_fd(3), OwnedFd::from_raw_fd(1)) };
    rustix::io::dup2(&pipe, &mut stdout).unwrap();
    let arguments: Vec<String> = arguments.split(' ').skip(1).map(str::to_owned).collect();
    std::process::exit(child(&arguments).into());
}

/// A program that compiles, as `statehouse` does; before that it runs `first`. The test harness's own output
/// is kept out of the pipe.
fn program(directory: &Path, first: &str) -> PathBuf {
    let path = directory.join("statehouse");
    let binary = std::env::current_exe().unwrap();
    let script = format!(
        "#!/bin/sh\n{first}\nexport STATEHOUSE_TEST_COMPILE=\"$*\"\nexec '{}' --exact \
         wasm::compile::tests::child_entry --ignored --nocapture --test-threads 1 3>&1 1>/dev/null\n",
        binary.display()
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn compile(component: &[u8], limits: CompileLimits) -> Result<Vec<u8>, CompileError> {
    let directory = tempfile::tempdir().unwrap();
    let program = program(directory.path(), "");
    Compiler::Process { program, limits }.compile(component)
}

#[test]
fn what_the_process_compiles_can_be_loaded() {
    let compiled = compile(NOTES, CompileLimits::default()).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &compiled).unwrap();
    Module::load(engine(), file.path(), World::Stored).unwrap().try_instance().unwrap();
    assert!(compiled == Compiler::InProcess.compile(NOTES).unwrap(), "the code depends on the process");
}

#[test]
fn a_module_that_takes_too_much_memory_is_refused_with_the_limit() {
    let limits = CompileLimits { memory_bytes_max: 64 << 20, ..Default::default() };
    let error = compile(&slow_component(1, 120_000), limits).err().unwrap();
    assert!(
        matches!(error, CompileError::TooMuchMemory { memory_bytes_max } if memory_bytes_max == 64 << 20),
        "{error}"
    );
}

#[test]
fn a_module_that_takes_too_long_is_refused_with_the_limit() {
    let limits = CompileLimits { seconds_max: 1, ..Default::default() };
    let error = compile(&slow_component(1, 120_000), limits).err().unwrap();
    assert!(matches!(error, CompileError::TooLong { seconds_max: 1 }), "{error}");
}

#[test]
fn a_process_that_hangs_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(directory.path(), "exec sleep 1000");
    let limits = CompileLimits { seconds_max: 1, ..Default::default() };
    let error = Compiler::Process { program, limits }.compile(NOTES).err().unwrap();
    assert!(matches!(error, CompileError::TooLong { .. }), "{error}");
}

#[test]
fn a_process_that_says_nothing_or_crashes_is_reported() {
    let error = |first| {
        let directory = tempfile::tempdir().unwrap();
        let program = program(directory.path(), first);
        Compiler::Process { program, limits: CompileLimits::default() }.compile(NOTES).err().unwrap()
    };
    assert!(matches!(error("exit 7"), CompileError::Process { .. }));
    let crashed = error("kill -SEGV $$");
    assert!(matches!(&crashed, CompileError::Refused(why) if why.contains("signal")), "{crashed}");
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let program = PathBuf::from("/nowhere/statehouse");
    let error = Compiler::Process { program, limits: CompileLimits::default() }.compile(NOTES).err().unwrap();
    assert!(error.to_string().contains("/nowhere/statehouse"), "{error}");
}

#[test]
fn what_cannot_be_compiled_is_refused_in_words() {
    let error = compile(b"no component", CompileLimits::default()).err().unwrap();
    assert!(matches!(&error, CompileError::Refused(why) if !why.is_empty()), "{error}");
}

#[test]
fn a_damaged_artefact_is_stale_and_not_loaded() {
    let compiled = Compiler::InProcess.compile(NOTES).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &compiled[..compiled.len() / 2]).unwrap();
    let error = Module::load(engine(), file.path(), World::Stored).err().unwrap();
    assert!(matches!(error, crate::wasm::LoadError::Stale(_)), "{error}");
}

#[test]
fn a_core_module_becomes_a_component_in_the_process() {
    let module = core_module(&guest_text("", "(call $ok)", "(call $ok)"), "stored");
    let directory = tempfile::tempdir().unwrap();
    let compiler =
        Compiler::Process { program: program(directory.path(), ""), limits: CompileLimits::default() };
    let inspected = validate::inspect(&module, &validate::Limits::default(), &compiler).unwrap();
    assert_eq!(inspected.world, World::Stored);
}

/// Metadata whose packages need one another makes the converter recurse until its stack is gone: one byte of
/// a name is enough, because a world then exports an interface of another package that uses types of the
/// world's.
#[test]
fn a_core_module_that_crashes_the_converter_is_refused() {
    let mut module = core_module(&guest_text("", "(call $ok)", "(call $ok)"), "stored");
    let name = b"statehouse:machine/behavior@";
    for at in 0..module.len() - name.len() {
        if module[at..].starts_with(name) {
            module[at] = b'z';
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let compiler =
        Compiler::Process { program: program(directory.path(), ""), limits: CompileLimits::default() };
    let rejected = validate::inspect(&module, &validate::Limits::default(), &compiler).err().unwrap();
    assert!(rejected.to_string().contains("overflowed its stack"), "{rejected}");
}
