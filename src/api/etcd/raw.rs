//! Messages that are passed on as the bytes they came in, or put together from parts that are bytes already;
//! and services of such messages, as generated code has those of messages that are read.

use std::convert::Infallible;
use std::future::Future;
use std::marker::PhantomData;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};
use statehouse_kv::messages::ResponseHeader;
use tonic::Status;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{Body as HttpBody, Service, StdError, http};
use tonic::server::{Grpc, NamedService};

/// A service that takes its messages as bytes.
pub trait RawService: Clone + Send + Sync + 'static {
    /// Its name with that of its package.
    const NAME: &'static str;

    /// Answers a call of a method.
    fn serve<B>(
        self,
        method: &str,
        request: http::Request<B>,
    ) -> impl Future<Output = http::Response<Body>> + Send + 'static
    where
        B: HttpBody + Send + 'static,
        B::Error: Into<StdError> + Send + 'static;
}

/// A [`RawService`] at work.
#[derive(Clone)]
pub struct RawServer<S>(pub S);

impl<S: RawService> NamedService for RawServer<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for RawServer<S>
where
    S: RawService,
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
        let path = request.uri().path().to_owned();
        let method = path.rsplit('/').next().unwrap_or_default();
        Box::pin(self.0.clone().serve(method, request).map(Ok))
    }
}

/// What takes a call's messages off the connection, and puts the answers on it.
pub fn grpc<T: Encode>() -> Grpc<RawCodec<T>> {
    Grpc::new(RawCodec::default())
}

/// An answer of the machine behind a header of ours.
pub struct Answer {
    header: Vec<u8>,
    rest: Bytes,
}

impl Answer {
    /// The machine's answer with the header completed: it knows only its revision.
    ///
    /// # Errors
    /// `Internal` if the answer does not begin with a header, as those of `builtin:kv` do.
    pub fn complete(
        mut answer: Bytes,
        complete: impl FnOnce(ResponseHeader) -> ResponseHeader,
    ) -> Result<Answer, Status> {
        let header = first_header(&mut answer)
            .ok_or_else(|| Status::internal("statehouse: the machine's answer is none of builtin:kv"))?;
        let header = complete(header);
        let mut encoded = Vec::with_capacity(48);
        encode_key(HEADER, WireType::LengthDelimited, &mut encoded);
        encode_varint(header.encoded_len() as u64, &mut encoded);
        header.encode_raw(&mut encoded);
        Ok(Answer { header: encoded, rest: answer })
    }

    /// As the bytes of one message.
    pub fn into_bytes(self) -> Vec<u8> {
        let mut bytes = self.header;
        bytes.extend_from_slice(&self.rest);
        bytes
    }
}

/// The field of the header in every answer.
const HEADER: u32 = 1;

/// Takes the header off an answer that begins with one.
fn first_header(answer: &mut Bytes) -> Option<ResponseHeader> {
    let (tag, wire) = decode_key(answer).ok()?;
    let length = usize::try_from(decode_varint(answer).ok()?).ok()?;
    if tag != HEADER || wire != WireType::LengthDelimited || answer.len() < length {
        return None;
    }
    ResponseHeader::decode(answer.split_to(length)).ok()
}

/// What can be sent as a message.
pub trait Encode: Send + 'static {
    /// Writes the bytes of the message.
    fn encode(self, out: &mut impl BufMut);
}

impl Encode for Answer {
    fn encode(self, out: &mut impl BufMut) {
        out.put_slice(&self.header);
        out.put(self.rest);
    }
}

/// Requests as bytes, answers as what encodes itself.
pub struct RawCodec<T>(PhantomData<T>);

impl<T> Default for RawCodec<T> {
    fn default() -> RawCodec<T> {
        RawCodec(PhantomData)
    }
}

impl<T: Encode> Codec for RawCodec<T> {
    type Encode = T;
    type Decode = Bytes;
    type Encoder = RawCodec<T>;
    type Decoder = RawDecoder;

    fn encoder(&mut self) -> RawCodec<T> {
        RawCodec::default()
    }

    fn decoder(&mut self) -> RawDecoder {
        RawDecoder
    }
}

impl<T: Encode> Encoder for RawCodec<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(out);
        Ok(())
    }
}

/// Takes a message as it is.
pub struct RawDecoder;

impl Decoder for RawDecoder {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(message.copy_to_bytes(message.remaining())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use statehouse_kv::messages::{KeyValue, RangeResponse};

    #[test]
    fn only_the_header_of_an_answer_changes() {
        let key = KeyValue { key: b"k".into(), value: b"v".into(), ..KeyValue::default() };
        let header = Some(ResponseHeader { revision: 7, ..ResponseHeader::default() });
        let answer = RangeResponse { header, kvs: vec![key], more: true, count: 3 };
        let complete = |header| ResponseHeader { cluster_id: 1, member_id: u64::MAX, raft_term: 3, ..header };
        let completed = Answer::complete(answer.encode_to_vec().into(), complete).unwrap();
        let header = header.map(complete);
        let sent = completed.into_bytes();
        assert_eq!(RangeResponse::decode(&*sent).unwrap(), RangeResponse { header, ..answer });
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for odd in [&b""[..], b"\x0a\x05", b"\x12\x00", b"\x0a\x02\xff\xff", b"\xff"] {
            assert!(Answer::complete(Bytes::copy_from_slice(odd), |header| header).is_err(), "{odd:?}");
        }
    }
}
