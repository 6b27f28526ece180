//! etcd's service `KV`: requests go to the machine as they came, and its answers back with a full header.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use futures_util::future::BoxFuture;
use futures_util::stream;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use statehouse_kv::messages::{RangeRequest, RangeResponse, SortOrder, SortTarget};
use statehouse_kv::{Call, Kind};
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, StdError, http};
use tonic::server::{ServerStreamingService, UnaryService};
use tonic::{Request, Response, Status};

use super::methods::{Form, unknown_method};
use super::pages::{self, Pages};
use super::raw::{self, Answer, Encode, RawService};
use super::{Front, consistency, odd};

/// The service.
#[derive(Clone)]
pub struct KvService(pub(super) Arc<Front>);

impl RawService for KvService {
    const NAME: &'static str = "etcdserverpb.KV";

    fn serve<B>(
        self,
        method: &str,
        request: http::Request<B>,
    ) -> impl Future<Output = http::Response<Body>> + Send + 'static
    where
        B: HttpBody + Send + 'static,
        B::Error: Into<StdError> + Send + 'static,
    {
        let (kind, streams) = match method {
            "Range" => (Some(Kind::Range), false),
            "RangeStream" => (Some(Kind::Range), true),
            "Put" => (Some(Kind::Put), false),
            "DeleteRange" => (Some(Kind::DeleteRange), false),
            "Txn" => (Some(Kind::Txn), false),
            "Compact" => (Some(Kind::Compaction), false),
            _ => (None, false),
        };
        let (front, unknown) = (self.0, unknown_method(Self::NAME, method));
        async move {
            match kind {
                Some(_) if streams => raw::grpc::<Part>().server_streaming(RangeStream(front), request).await,
                Some(kind) => raw::grpc::<Answer>().unary(Unary { front, kind }, request).await,
                None => unknown.into_http(),
            }
        }
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

    /// Whether it is nothing but ranges of which none minds a stale answer. As in etcd, a transaction within
    /// it does.
    fn serializable(&self) -> bool {
        self.steps().all(|step| step.range.as_ref().is_some_and(|range| range.serializable))
    }
}

impl Front {
    /// Answers a request of the service.
    pub(super) async fn answer(&self, kind: Kind, request: &[u8]) -> Result<Answer, Status> {
        let answer = match kind {
            Kind::Range => {
                let serializable = shape::<Freshness>(Form::Single, request)?.serializable;
                match self.query(kind, request, consistency(serializable)).await {
                    Err(why) if pages::is_too_large(&why) => self.large_range(request, why).await?,
                    answered => answered?,
                }
            }
            Kind::Txn => match shape::<TxnShape>(Form::Single, request)? {
                txn if txn.writes() => self.apply(kind, request).await?,
                txn => self.query(kind, request, consistency(txn.serializable())).await?,
            },
            _ => {
                // What does not read at all has no place in the log.
                shape::<()>(Form::Single, request)?;
                self.apply(kind, request).await?
            }
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
        let mut request: RangeRequest = shape(Form::Single, request)?;
        let by_key = request.sort_target() == SortTarget::Key && request.sort_order() != SortOrder::Descend;
        if !by_key && request.sort_order() != SortOrder::None {
            return Err(why);
        }
        let mut whole = RangeResponse::default();
        if request.revision <= 0 {
            let count = RangeRequest { count_only: true, ..request.clone() }.encode_to_vec();
            let answer = self.query(Kind::Range, &count, consistency(request.serializable)).await?;
            // Its revision is told, not that of a page, which may be a later one: clients watch from there
            // on.
            whole.header = RangeRequest::answer(&answer).map_err(|why| odd(&why))?.header;
            request.revision = whole.header.unwrap_or_default().revision;
        }
        let mut pages = Pages::of(self, request);
        let mut is_first = true;
        while let Some(page) = pages.next().await? {
            if std::mem::take(&mut is_first) {
                whole.header = whole.header.or(page.header);
                whole.count = page.count;
            }
            whole.more = page.more;
            whole.kvs.extend(page.kvs);
        }
        Ok(whole.encode_to_vec().into())
    }
}

fn shape<T: Message + Default>(form: Form, request: &[u8]) -> Result<T, Status> {
    T::decode(request).map_err(|why| form.unreadable(why))
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
            check_streamed(&shape(Form::Stream, &request)?)?;
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
            (txn(vec![Step::RequestTxn(txn(vec![range(true)]))]), false, false),
            (txn(vec![]), false, true),
            (TxnRequest { failure: txn(vec![put()]).success, ..TxnRequest::default() }, true, false),
        ] {
            let shape = TxnShape::decode(&*request.encode_to_vec()).unwrap();
            assert_eq!((shape.writes(), shape.serializable()), (writes, serializable), "{request:?}");
        }
    }
}
