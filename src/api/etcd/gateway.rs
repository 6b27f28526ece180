//! etcd's API as JSON over HTTP: the paths of its gateway, on the port of its gRPC services.
//!
//! Every request is turned into a message by the descriptors of the services, handed to the same services
//! within this process, and its answer turned into JSON: names as in the protocol's files, numbers of 64 bits
//! as strings, bytes in base64, fields with nothing in them left out. It promises etcd's paths, shapes, codes
//! and HTTP statuses. It must never know what a request means: what is served here is served by gRPC.
//!
//! # Layout
//! - `paths`: which path is which method; `convert`: messages to JSON and back; `words`: what is wrong with
//!   JSON; `health`: whether this node serves
//! - this file: requests in, answers out

mod convert;
mod health;
mod paths;
mod words;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use futures_util::StreamExt;
use futures_util::stream;
use prost_reflect::{DynamicMessage, MethodDescriptor};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};
use tonic::{Code, Status, Streaming};

use self::convert::{DynamicCodec, Messages, to_json};
use self::health::Check;

/// The longest JSON of one request: one of etcd's 2 MiB, in base64, and as much again.
const REQUEST_BYTES_MAX: usize = 6 << 20;
/// What the gateway of etcd puts before the names of a call's metadata.
const METADATA_PREFIX: &str = "grpc-metadata-";
/// What a probe asks for, and what is checked then.
const PROBES: [(&str, &[Check]); 5] = [
    // Whether the process should be left running: to start it again makes no read succeed.
    ("/livez", &[]),
    ("/livez/serializable_read", &[Check::SerializableRead]),
    ("/readyz", &[Check::SerializableRead, Check::LinearizableRead]),
    ("/readyz/serializable_read", &[Check::SerializableRead]),
    ("/readyz/linearizable_read", &[Check::LinearizableRead]),
];
/// What browsers are told that they may send, from anywhere, as etcd does unless it is told otherwise.
const CORS: [(&str, &str); 3] = [
    ("access-control-allow-methods", "POST, GET, OPTIONS, PUT, DELETE"),
    ("access-control-allow-origin", "*"),
    ("access-control-allow-headers", "accept, content-type, authorization"),
];

/// The gRPC services `grpc` with the paths of the gateway before them.
pub fn routes(grpc: Router) -> Router {
    let methods = paths::methods();
    let gateway = Arc::new(Gateway { grpc: grpc.clone(), methods });
    let mut router = grpc;
    for path in gateway.methods.keys() {
        let gateway = gateway.clone();
        router = router.route(path, any(move |request| async move { gateway.serve(request).await }));
    }
    for (path, checks) in PROBES {
        let gateway = gateway.clone();
        let serve = get(move |uri: Uri| async move { health::checks(&gateway.grpc, checks, uri).await });
        router = router.route(path, serve.fallback(not_allowed));
    }
    router
        .route("/version", get(health::version).fallback(not_allowed))
        .route(
            "/health",
            get(move |uri: Uri| async move { health::health(&gateway.grpc, uri).await })
                .fallback(not_allowed),
        )
        .fallback(unknown)
}

/// What all requests share.
struct Gateway {
    grpc: Router,
    /// By path.
    methods: HashMap<String, Call>,
}

/// A method of a service.
struct Call {
    path: PathAndQuery,
    method: MethodDescriptor,
}

impl Gateway {
    /// Answers one request.
    async fn serve(&self, request: Request) -> Response {
        if request.method() == Method::OPTIONS {
            return with_cors(StatusCode::OK.into_response());
        }
        let call = self.methods.get(request.uri().path());
        let Some(call) = call.filter(|_| request.method() == Method::POST) else {
            return refusal(&Status::unimplemented("Method Not Allowed"), false);
        };
        let answer = match (call.method.is_client_streaming(), call.method.is_server_streaming()) {
            (false, false) => self.unary(call, request).await,
            (false, true) => self.stream_of_one(call, request).await,
            (true, _) => self.stream_of_many(call, request).await,
        };
        answer.unwrap_or_else(|status| refusal(&status, false))
    }

    /// The services, for one call. Answers may have any size: they are bounded by whoever gives them.
    fn client(&self) -> Grpc<Router> {
        Grpc::new(self.grpc.clone()).max_decoding_message_size(usize::MAX)
    }

    async fn unary(&self, call: &Call, request: Request) -> Result<Response, Status> {
        let (metadata, message) = one_message(call, request).await?;
        let request = tonic::Request::from_parts(metadata, tonic::Extensions::default(), message);
        let codec = DynamicCodec::new(call.method.output());
        let answer = self.client().unary(request, call.path.clone(), codec).await?;
        Ok(answered(to_json(answer.get_ref())?.into()))
    }

    async fn stream_of_one(&self, call: &Call, request: Request) -> Result<Response, Status> {
        let (metadata, message) = one_message(call, request).await?;
        let request = tonic::Request::from_parts(metadata, tonic::Extensions::default(), message);
        let codec = DynamicCodec::new(call.method.output());
        let answers = self.client().server_streaming(request, call.path.clone(), codec).await;
        Ok(lines(answers, None).await)
    }

    async fn stream_of_many(&self, call: &Call, request: Request) -> Result<Response, Status> {
        let (parts, body) = request.into_parts();
        let (complaint, complained) = oneshot::channel();
        let messages = Messages::new(call.method.input(), body, complaint).into_stream();
        let metadata = metadata_of(&parts.headers)?;
        let request = tonic::Request::from_parts(metadata, tonic::Extensions::default(), messages);
        let codec = DynamicCodec::new(call.method.output());
        let answers = self.client().streaming(request, call.path.clone(), codec).await;
        Ok(lines(answers, Some(complained)).await)
    }
}

/// Reads the only message of a request. No body is a message with nothing in it.
async fn one_message(call: &Call, request: Request) -> Result<(MetadataMap, DynamicMessage), Status> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, REQUEST_BYTES_MAX).await.map_err(|_| {
        let text =
            format!("statehouse: the request is over {REQUEST_BYTES_MAX} bytes of JSON, or was cut off");
        Status::resource_exhausted(text)
    })?;
    let mut messages = Messages::of_whole(call.method.input(), &body);
    let message = messages.next_whole()?.unwrap_or_else(|| DynamicMessage::new(call.method.input()));
    Ok((metadata_of(&parts.headers)?, message))
}

/// The metadata that a client gave a request, as etcd's gateway passes it on.
fn metadata_of(headers: &HeaderMap) -> Result<MetadataMap, Status> {
    let mut metadata = MetadataMap::new();
    for (name, value) in headers {
        let name = match name.as_str() {
            "authorization" => "authorization",
            // Those that end so are bytes in base64, which no service of etcd asks for.
            name if name.ends_with("-bin") => continue,
            name => match name.strip_prefix(METADATA_PREFIX) {
                Some(name) => name,
                None => continue,
            },
        };
        let odd = || Status::invalid_argument(format!("statehouse: the header {name} cannot be passed on"));
        let key = MetadataKey::from_bytes(name.as_bytes()).map_err(|_| odd())?;
        metadata.append(key, MetadataValue::try_from(value.as_bytes()).map_err(|_| odd())?);
    }
    Ok(metadata)
}

type Answers = Result<tonic::Response<Streaming<DynamicMessage>>, Status>;

/// A stream of answers, a line each. The status of the whole is that of the first line.
async fn lines(answers: Answers, complained: Option<oneshot::Receiver<Status>>) -> Response {
    let mut rest = match answers {
        Ok(answers) => Lines { answers: answers.into_inner(), complained, ended: false },
        Err(status) => return refusal(&status, true),
    };
    let first = match rest.next().await {
        Some(Ok(first)) => first,
        Some(Err(status)) => return refusal(&status, true),
        None => Bytes::new(),
    };
    let rest = stream::unfold(rest, async |mut rest| {
        let line = rest.next().await?.unwrap_or_else(|status| error_line(&status));
        Some((line, rest))
    });
    let all = stream::once(std::future::ready(first)).chain(rest);
    answered(Body::from_stream(all.map(Ok::<_, std::convert::Infallible>)))
}

/// The answers that are still to come.
struct Lines {
    answers: Streaming<DynamicMessage>,
    /// What is wrong with the client's side of the stream, if something is.
    complained: Option<oneshot::Receiver<Status>>,
    ended: bool,
}

impl Lines {
    /// The next line; an error is the last.
    async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        if self.ended {
            return None;
        }
        let answer = tokio::select! {
            answer = self.answers.next() => match answer {
                Some(answer) => Some(answer),
                // A complaint ends the answers, and may come at the same moment.
                None => self.complained.take().and_then(|mut told| told.try_recv().ok()).map(Err),
            },
            complaint = told(&mut self.complained) => Some(Err(complaint)),
        };
        let line = answer?.and_then(|message| {
            let mut line = b"{\"result\":".to_vec();
            line.extend(to_json(&message)?);
            line.extend(b"}\n");
            Ok(Bytes::from(line))
        });
        self.ended = line.is_err();
        Some(line)
    }
}

/// What is complained of; waits for ever if nothing is.
async fn told(complained: &mut Option<oneshot::Receiver<Status>>) -> Status {
    if let Some(told) = complained
        && let Ok(complaint) = told.await
    {
        return complaint;
    }
    *complained = None;
    std::future::pending().await
}

fn error_json(status: &Status) -> Value {
    // A field with nothing in it is left out, here as in answers.
    match status.message() {
        "" => json!({ "code": status.code() as i32 }),
        message => json!({ "code": status.code() as i32, "message": message }),
    }
}

fn error_line(status: &Status) -> Bytes {
    Bytes::from(format!("{}\n", json!({ "error": error_json(status) })))
}

/// A request that was not done: with the HTTP status for its code. In a stream, errors have a frame.
fn refusal(status: &Status, in_stream: bool) -> Response {
    let body = if in_stream { error_line(status) } else { Bytes::from(error_json(status).to_string()) };
    let mut answer = answered(body.into());
    *answer.status_mut() = http_status(status.code());
    answer
}

fn answered(body: Body) -> Response {
    let content = [
        (header::CONTENT_TYPE, "application/json"),
        (header::HeaderName::from_static("grpc-metadata-content-type"), "application/grpc"),
    ];
    with_cors((content, body).into_response())
}

fn with_cors(mut answer: Response) -> Response {
    for (name, value) in CORS {
        answer.headers_mut().insert(name, header::HeaderValue::from_static(value));
    }
    answer
}

/// The HTTP status that etcd's gateway has for a code.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        // "The client closed the request": nobody standardised it.
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

async fn not_allowed() -> Response {
    let allow = [(header::ALLOW, "GET")];
    with_cors((StatusCode::METHOD_NOT_ALLOWED, allow, "Method Not Allowed\n").into_response())
}

/// A path of nobody: said in the way of whoever asked.
async fn unknown(request: Request) -> Response {
    let content = request.headers().get(header::CONTENT_TYPE);
    if content.is_some_and(|content| content.as_bytes().starts_with(b"application/grpc")) {
        let path = request.uri().path().trim_start_matches('/');
        let service = path.rsplit_once('/').map_or(path, |(service, _)| service);
        return Status::unimplemented(format!("unknown service {service}")).into_http();
    }
    if request.uri().path().starts_with(paths::PREFIX) {
        return refusal(&Status::not_found("Not Found"), false);
    }
    with_cors((StatusCode::NOT_FOUND, "404 page not found\n").into_response())
}
