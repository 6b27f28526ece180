//! Compiles `proto/` for the crate: messages, service stubs, and the descriptors that reflection serves.
//!
//! Needs no `protoc` on the computer: the files are parsed by a library.

use std::path::Path;
use std::{env, error, fs};

/// The folder that imports are relative to.
const ROOT: &str = "proto";

/// Messages that nodes also send each other: the crate has them as types of its own, with the same tags.
const SHARED: [&str; 6] = ["NodeReport", "Behind", "DiskUse", "ReplicaLog", "LeaseInfo", "LeasePage"];

fn main() -> Result<(), Box<dyn error::Error>> {
    println!("cargo:rerun-if-changed={ROOT}");
    let files = proto_files()?;
    let mut compiler = protox::Compiler::new([ROOT])?;
    compiler.include_source_info(true).include_imports(true).open_files(files)?;
    let descriptors = Path::new(&env::var("OUT_DIR")?).join("descriptors.bin");
    fs::write(descriptors, compiler.encode_file_descriptor_set())?;
    // Payloads are slices of the network buffer they came in: nothing is copied on the way to the log.
    let mut generator = tonic_prost_build::configure().bytes(".");
    for message in SHARED {
        let (wire, own) = (format!(".statehouse.v1.{message}"), format!("crate::node::request::{message}"));
        generator = generator.extern_path(wire, own);
    }
    generator.compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

/// The files of `statehouse/v1`, relative to the root, in the order of their names.
fn proto_files() -> Result<Vec<String>, Box<dyn error::Error>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(Path::new(ROOT).join("statehouse/v1"))? {
        let name = entry?.file_name().into_string().map_err(|name| format!("odd file name {name:?}"))?;
        if name.ends_with(".proto") {
            files.push(format!("statehouse/v1/{name}"));
        }
    }
    files.sort();
    Ok(files)
}
