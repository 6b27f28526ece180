//! Which methods there are, and what etcd's gRPC library says before etcd has seen a request: of a method
//! that nobody serves, and of bytes that are no message.
//!
//! Clients tell a server that lacks something from one that failed by these words. It must never look at what
//! a message means.

use std::collections::HashMap;

use prost_reflect::DescriptorPool;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::{Code, Status};

use crate::proto::etcd::DESCRIPTORS;

/// What prost says first of bytes that do not read.
const UNREADABLE: &str = "failed to decode Protobuf message";

/// How the messages of a method come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One request, one answer.
    Single,
    /// A stream to one side, or to both.
    Stream,
}

impl Form {
    /// A request that does not read.
    pub fn unreadable(self, why: impl std::fmt::Display) -> Status {
        let words = match self {
            Form::Single => "grpc: error unmarshalling request",
            Form::Stream => "grpc: failed to unmarshal the received message",
        };
        Status::internal(format!("{words}: {why}"))
    }

    /// A status as it is, but for one of a request that did not read: that says so in etcd's words.
    pub fn in_etcds_words(self, status: Status) -> Status {
        match status.code() == Code::Internal && status.message().starts_with(UNREADABLE) {
            true => self.unreadable(status.message()),
            false => status,
        }
    }

    /// The same of an answer that has no messages, but a status.
    pub fn answer_in_etcds_words(self, answer: http::Response<Body>) -> http::Response<Body> {
        match Status::from_header_map(answer.headers()) {
            Some(status) if status.code() == Code::Internal => self.in_etcds_words(status).into_http(),
            _ => answer,
        }
    }
}

/// What is said of a method that its service does not have.
pub fn unknown_method(service: &str, method: &str) -> Status {
    Status::unimplemented(format!("unknown method {method} for service {service}"))
}

/// The methods of all services.
pub struct Methods(HashMap<String, HashMap<String, Form>>);

impl Methods {
    /// Those of etcd, and of the health service beside them.
    pub fn of_etcd() -> Methods {
        let mut pool =
            DescriptorPool::decode(DESCRIPTORS).expect("the build has just encoded these descriptors");
        let health = pool.decode_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        health.expect("the library has tested its descriptors");
        let form = |streams| if streams { Form::Stream } else { Form::Single };
        let services = pool.services().map(|service| {
            let methods = service.methods().map(|method| {
                let streams = method.is_client_streaming() || method.is_server_streaming();
                (method.name().to_owned(), form(streams))
            });
            (service.full_name().to_owned(), methods.collect())
        });
        Methods(services.collect())
    }

    /// The method of a path `/SERVICE/METHOD`.
    ///
    /// # Errors
    /// What etcd's library says of a path of nobody.
    pub fn find(&self, path: &str) -> Result<Form, Status> {
        let Some((service, method)) = split(path) else {
            return Err(Status::unimplemented(format!("malformed method name: {path:?}")));
        };
        let Some(methods) = self.0.get(service) else {
            return Err(Status::unimplemented(format!("unknown service {service}")));
        };
        methods.get(method).copied().ok_or_else(|| unknown_method(service, method))
    }
}

/// The service and the method of a path. A method's name has no slash: what is before the last one is the
/// service's.
pub fn split(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix('/')?.rsplit_once('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_found_and_what_is_none_is_named() {
        let methods = Methods::of_etcd();
        for (path, form) in [
            ("/etcdserverpb.KV/Range", Form::Single),
            ("/etcdserverpb.KV/RangeStream", Form::Stream),
            ("/etcdserverpb.Lease/LeaseKeepAlive", Form::Stream),
            ("/etcdserverpb.Maintenance/Snapshot", Form::Stream),
            ("/v3electionpb.Election/Observe", Form::Stream),
            ("/v3lockpb.Lock/Lock", Form::Single),
            ("/grpc.health.v1.Health/Check", Form::Single),
            ("/grpc.health.v1.Health/Watch", Form::Stream),
        ] {
            assert_eq!(methods.find(path).expect("known"), form, "{path}");
        }
        for (path, text) in [
            ("/etcdserverpb.KV/Rage", "unknown method Rage for service etcdserverpb.KV"),
            ("/etcdserverpb.KV/", "unknown method  for service etcdserverpb.KV"),
            ("/etcdserverpb.KV/x/Range", "unknown service etcdserverpb.KV/x"),
            ("/nobody.Service/Range", "unknown service nobody.Service"),
            ("/etcdserverpb.KV", "malformed method name: \"/etcdserverpb.KV\""),
        ] {
            let status = methods.find(path).expect_err("a path of nobody");
            assert_eq!((status.code(), status.message()), (Code::Unimplemented, text));
        }
    }

    #[test]
    fn only_what_does_not_read_is_put_in_other_words() {
        let unread = <() as prost::Message>::decode(&b"\xff"[..]).expect_err("half a number");
        let status = Form::Single.in_etcds_words(Status::internal(unread.to_string()));
        assert!(status.message().starts_with("grpc: error unmarshalling request: "), "{status:?}");
        let other = Form::Stream.in_etcds_words(Status::internal("statehouse: the machine failed"));
        assert_eq!(other.message(), "statehouse: the machine failed");
    }
}
