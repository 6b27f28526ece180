//! Compiles `proto/` for the crate: messages, service stubs, and the descriptors that reflection serves.
//!
//! Needs no `protoc` on the computer: the files are parsed by a library.

use std::path::{Path, PathBuf};
use std::{env, error, fs};

use prost_types::{FileDescriptorProto, FileDescriptorSet};

/// The folder that imports are relative to.
const ROOT: &str = "proto";

/// Messages that nodes also send each other: the crate has them as types of its own, with the same tags.
const SHARED: [&str; 6] = ["NodeReport", "Behind", "DiskUse", "ReplicaLog", "LeaseInfo", "LeasePage"];

/// Messages of etcd's that the kv machine has as types of its own, with the same tags.
const OF_THE_MACHINE: [&str; 16] = [
    ".mvccpb.KeyValue",
    ".mvccpb.Event",
    ".etcdserverpb.ResponseHeader",
    ".etcdserverpb.RangeRequest",
    ".etcdserverpb.RangeResponse",
    ".etcdserverpb.PutRequest",
    ".etcdserverpb.PutResponse",
    ".etcdserverpb.DeleteRangeRequest",
    ".etcdserverpb.DeleteRangeResponse",
    ".etcdserverpb.RequestOp",
    ".etcdserverpb.ResponseOp",
    ".etcdserverpb.Compare",
    ".etcdserverpb.TxnRequest",
    ".etcdserverpb.TxnResponse",
    ".etcdserverpb.CompactionRequest",
    ".etcdserverpb.CompactionResponse",
];

/// Services of etcd's that the crate serves without reading all of their messages: it has no use for a
/// generated server.
const SERVED_RAW: [&str; 2] = ["KV", "Watch"];

type Done = Result<(), Box<dyn error::Error>>;

fn main() -> Done {
    println!("cargo:rerun-if-changed={ROOT}");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    statehouse(&out)?;
    etcd(&out.join("etcd"))
}

/// Our own services.
fn statehouse(out: &Path) -> Done {
    let files = compile("statehouse", &out.join("descriptors.bin"))?;
    // Payloads are slices of the network buffer they came in: nothing is copied on the way to the log.
    let mut generator = tonic_prost_build::configure().bytes(".");
    for message in SHARED {
        let (wire, own) = (format!(".statehouse.v1.{message}"), format!("crate::node::request::{message}"));
        generator = generator.extern_path(wire, own);
    }
    generator.compile_fds(files)?;
    Ok(())
}

/// Those of etcd: everything but the raw services, and then the clients of these.
fn etcd(out: &Path) -> Done {
    for part in ["services", "clients"] {
        fs::create_dir_all(out.join(part))?;
    }
    let mut files = compile("etcd", &out.join("descriptors.bin"))?;
    let mut raw = files.clone();
    for file in &mut files.file {
        keep_services(file, |name| !SERVED_RAW.contains(&name));
    }
    let generator = |part: &str| {
        let generator = tonic_prost_build::configure().bytes(".").out_dir(out.join(part));
        OF_THE_MACHINE.iter().fold(generator, |generator, message| {
            let own = message.rsplit('.').next().unwrap_or_default();
            generator.extern_path(*message, format!("::statehouse_kv::messages::{own}"))
        })
    };
    generator("services").compile_fds(files)?;
    raw.file.retain(|file| file.package() == "etcdserverpb");
    for file in &mut raw.file {
        keep_services(file, |name| SERVED_RAW.contains(&name));
    }
    let clients = generator("clients").build_server(false);
    clients.extern_path(".etcdserverpb", "crate::proto::etcd::etcdserverpb").compile_fds(raw)?;
    Ok(())
}

fn keep_services(file: &mut FileDescriptorProto, keep: impl Fn(&str) -> bool) {
    file.service.retain(|service| keep(service.name()));
    // It speaks of services by their places.
    file.source_code_info = None;
}

/// Reads all files below a folder of the root, and leaves their descriptors at `descriptors`.
fn compile(folder: &str, descriptors: &Path) -> Result<FileDescriptorSet, Box<dyn error::Error>> {
    let mut files = Vec::new();
    find(&Path::new(ROOT).join(folder), &mut files)?;
    files.sort();
    let mut compiler = protox::Compiler::new([ROOT])?;
    compiler.include_source_info(true).include_imports(true).open_files(files)?;
    if let Some(parent) = descriptors.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(descriptors, compiler.encode_file_descriptor_set())?;
    Ok(compiler.file_descriptor_set())
}

fn find(folder: &Path, files: &mut Vec<PathBuf>) -> Done {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path.strip_prefix(ROOT)?.to_owned());
        }
    }
    Ok(())
}
