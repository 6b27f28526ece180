//! etcd's service `KV`: requests go to the machine as they came, and its answers back with a full header.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes};
use futures_util::future::BoxFuture;
use futures_util::stream;

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use statehouse_kv::messages::{RangeRequest, RangeResponse, SortOrder, SortTarget};
use statehouse_kv::{Call, Kind};
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, Service, StdError, http};
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::{Request, Response, Status};

use super::pages::{self, Pages};
use super::raw::{Answer, Encode, RawCodec};
use super::{Front, REFUSED_BYTES_MAX, check_message, consistency, odd};
use crate::node::request::Consistency;

/// The service.
#[derive(Clone)]
pub struct KvServer(Arc<Front>);

impl KvServer {
    /// Serves the front's machine.
    pub fn new(front: Arc<Front>) -> KvServer {
        KvServer(front)
    }
}

impl NamedService for KvServer {
    const NAME: &'static str = "etcdserverpb.KV";
}

impl<B> Service<http::Request<B>> for KvServer
where
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let path = request.uri().path();
        let kind = match path.rsplit('/').next().unwrap_or_default() {
            "Range" => Kind::Range,
            "Put" => Kind::Put,
            "DeleteRange" => Kind::DeleteRange,
            "Txn" => Kind::Txn,
            "Compact" => Kind::Compaction,
            "RangeStream" => {
                let call = RangeStream(self.0.clone());
                let mut grpc =
                    Grpc::new(RawCodec::<Part>::default()).max_decoding_message_size(REFUSED_BYTES_MAX);
                return Box::pin(async move { Ok(grpc.server_streaming(call, request).await) });
            }
            _ => return Box::pin(async { Ok(Status::unimplemented("").into_http()) }),
        };
        let call = Unary { front: self.0.clone(), kind };
        let mut grpc = Grpc::new(RawCodec::<Answer>::default()).max_decoding_message_size(REFUSED_BYTES_MAX);
        Box::pin(async move { Ok(grpc.unary(call, request).await) })
    }
}

struct Unary {
    front: Arc<Front>,
    kind: Kind,
}

impl UnaryService<Bytes> for Unary {
    type Response = Answer;
    type Future = BoxFuture<'static, Result<Response<Answer>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let (front, kind) = (self.front.clone(), self.kind);
        Box::pin(async move {
            let request = request.into_inner();
            check_message(&request)?;
            front.answer(kind, &request).await.map(Response::new)
        })
    }
}

/// As much of a `RangeRequest` as says how fresh its answer must be.
#[derive(Clone, PartialEq, Message)]
struct Freshness {
    #[prost(bool, tag = "7")]
    serializable: bool,
}

/// As much of a `TxnRequest` as says whether it writes.
#[derive(Clone, PartialEq, Message)]
struct TxnShape {
    #[prost(message, repeated, tag = "2")]
    success: Vec<StepShape>,
    #[prost(message, repeated, tag = "3")]
    failure: Vec<StepShape>,
}

/// One step of it.
#[derive(Clone, PartialEq, Message)]
struct StepShape {
    #[prost(message, optional, tag = "1")]
    range: Option<Freshness>,
    #[prost(message, optional, tag = "2")]
    put: Option<()>,
    #[prost(message, optional, tag = "3")]
    delete: Option<()>,
    #[prost(message, optional, tag = "4")]
    txn: Option<TxnShape>,
}

impl TxnShape {
    fn steps(&self) -> impl Iterator<Item = &StepShape> {
        self.success.iter().chain(&self.failure)
    }

    fn writes(&self) -> bool {
        self.steps().any(|step| {
            step.put.is_some() || step.delete.is_some() || step.txn.as_ref().is_some_and(TxnShape::writes)
        })
    }

    /// Whether none of its ranges minds a stale answer.
    fn serializable(&self) -> bool {
        self.steps().all(|step| {
            step.range.as_ref().is_some_and(|range| range.serializable)
                || step.txn.as_ref().is_some_and(TxnShape::serializable)
        })
    }
}

impl Front {
    /// Answers a request of the service.
    pub(super) async fn answer(&self, kind: Kind, request: &[u8]) -> Result<Answer, Status> {
        let answer = match kind {
            Kind::Range => {
                let serializable = shape::<Freshness>(request)?.serializable;
                match self.query(kind, request, consistency(serializable)).await {
                    Err(why) if pages::is_too_large(&why) => self.large_range(request, why).await?,
                    answered => answered?,
                }
            }
            Kind::Txn => match shape::<TxnShape>(request)? {
                txn if txn.writes() => self.apply(kind, request).await?,
                txn => self.query(kind, request, consistency(txn.serializable())).await?,
            },
            _ => self.apply(kind, request).await?,
        };
        Answer::complete(answer, |header| self.header_at(header.revision))
    }
}

impl Front {
    /// Puts together what is more than the machine answers at once. Only what comes in the order of keys.
    ///
    /// # Errors
    /// `why` it did not answer, if the order is another.
    async fn large_range(&self, request: &[u8], why: Status) -> Result<Bytes, Status> {
        let mut request: RangeRequest = shape(request)?;
        let by_key = request.sort_target() == SortTarget::Key && request.sort_order() != SortOrder::Descend;
        if !by_key && request.sort_order() != SortOrder::None {
            return Err(why);
        }
        if request.revision <= 0 {
            let count = RangeRequest { count_only: true, ..request.clone() };
            let answer = self.query(Kind::Range, &count.encode_to_vec(), Consistency::Linearizable).await?;
            let counted = RangeRequest::answer(&answer).map_err(|why| odd(&why))?;
            request.revision = counted.header.unwrap_or_default().revision;
        }
        let mut pages = Pages::of(self, request);
        let mut whole = RangeResponse::default();
        while let Some(page) = pages.next().await? {
            if whole.header.is_none() {
                (whole.header, whole.count) = (page.header, page.count);
            }
            whole.more = page.more;
            whole.kvs.extend(page.kvs);
        }
        Ok(whole.encode_to_vec().into())
    }
}

fn shape<T: Message + Default>(request: &[u8]) -> Result<T, Status> {
    // In the words of grpc-go, whose server says so before etcd sees the request.
    T::decode(request).map_err(|why| Status::internal(format!("grpc: error unmarshalling request: {why}")))
}

/// Answers a range as a stream. The machine bounds an answer, so one part holds it all.
struct RangeStream(Arc<Front>);

/// Refuses what etcd does not stream, unless the machine has more to say against it.
fn check_streamed(request: &RangeRequest) -> Result<(), Status> {
    let known = SortOrder::try_from(request.sort_order).is_ok()
        && SortTarget::try_from(request.sort_target).is_ok()
        && !request.key.is_empty();
    let sorted = match request.sort_order() {
        SortOrder::None => false,
        SortOrder::Ascend => request.sort_target() != SortTarget::Key,
        SortOrder::Descend => true,
    };
    let revisions = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    if known && sorted {
        return Err(Status::unimplemented("RangeStream does not support custom sort orders"));
    }
    if known && revisions.iter().any(|revision| *revision != 0) {
        return Err(Status::unimplemented("RangeStream does not support revision filters"));
    }
    Ok(())
}

/// A `RangeStreamResponse`.
struct Part(Answer);

impl Encode for Part {
    fn encode(self, out: &mut impl BufMut) {
        let answer = self.0.into_bytes();
        encode_key(1, WireType::LengthDelimited, out);
        encode_varint(answer.len() as u64, out);
        out.put_slice(&answer);
    }
}

type Parts = Pin<Box<dyn stream::Stream<Item = Result<Part, Status>> + Send>>;

impl ServerStreamingService<Bytes> for RangeStream {
    type Response = Part;
    type ResponseStream = Parts;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Parts>, Status>> + Send>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let front = self.0.clone();
        Box::pin(async move {
            let request = request.into_inner();
            check_message(&request)?;
            check_streamed(&shape(&request)?)?;
            let part = front.answer(Kind::Range, &request).await.map(Part)?;
            Ok(Response::new(Box::pin(stream::once(async { Ok(part) })) as Parts))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use statehouse_kv::messages::{PutRequest, RangeRequest, Request as Step, RequestOp, TxnRequest};

    fn txn(steps: Vec<Step>) -> TxnRequest {
        let success = steps.into_iter().map(|step| RequestOp { request: Some(step) }).collect();
        TxnRequest { success, ..TxnRequest::default() }
    }

    fn range(serializable: bool) -> Step {
        Step::RequestRange(RangeRequest { key: b"k".into(), serializable, ..RangeRequest::default() })
    }

    #[test]
    fn a_transaction_is_a_query_if_nothing_in_it_writes() {
        let put = || Step::RequestPut(PutRequest { key: b"k".into(), ..PutRequest::default() });
        for (request, writes, serializable) in [
            (txn(vec![range(true)]), false, true),
            (txn(vec![range(true), range(false)]), false, false),
            (txn(vec![range(true), put()]), true, false),
            (txn(vec![Step::RequestTxn(txn(vec![put()]))]), true, false),
            (txn(vec![Step::RequestTxn(txn(vec![range(true)]))]), false, true),
            (TxnRequest { failure: txn(vec![put()]).success, ..TxnRequest::default() }, true, false),
        ] {
            let shape = TxnShape::decode(&*request.encode_to_vec()).unwrap();
            assert_eq!((shape.writes(), shape.serializable()), (writes, serializable), "{request:?}");
        }
    }
}
