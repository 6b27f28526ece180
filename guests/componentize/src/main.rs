//! `componentize CORE.wasm COMPONENT.wasm`: what `wasm-tools component new` does, without installing
//! anything.
//!
//! The host does the same at upload; this is for components that are committed or built in.

use std::error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    let [core, component] = paths.as_slice() else {
        eprintln!("usage: componentize CORE.wasm COMPONENT.wasm");
        return ExitCode::from(2);
    };
    match convert(core, component) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("componentize {core}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn convert(core: &str, component: &str) -> Result<(), Box<dyn Error>> {
    let module = std::fs::read(core)?;
    let bytes = wit_component::ComponentEncoder::default()
        .module(&module)
        .and_then(|encoder| encoder.validate(true).encode())
        .map_err(|error| format!("{error:#}"))?;
    std::fs::write(component, bytes)?;
    Ok(())
}
