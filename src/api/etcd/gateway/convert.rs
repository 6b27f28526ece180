//! Messages to JSON and back, by the descriptors of the services.
//!
//! Promises: what etcd's gateway reads is read, names of fields in both spellings, numbers as numbers or as
//! strings, base64 of both alphabets, and fields it does not know skipped. A client's stream of messages may
//! come in any pieces, and never grows beyond a limit here.

use axum::body::{Body, BodyDataStream};
use futures_util::{Stream, StreamExt, stream};
use prost::Message;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::Value;
use tokio::sync::oneshot;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use super::words;

/// The longest message of a stream: what a stream of etcd's carries is a few hundred bytes.
const STREAMED_BYTES_MAX: usize = 1 << 20;

const READ: DeserializeOptions = DeserializeOptions::new().deny_unknown_fields(false);
const WRITE: SerializeOptions = SerializeOptions::new()
    .use_proto_field_name(true)
    .stringify_64_bit_integers(true)
    .skip_default_fields(true);

/// An answer as JSON.
pub fn to_json(message: &DynamicMessage) -> Result<Vec<u8>, Status> {
    let mut json = serde_json::Serializer::new(Vec::new());
    match message.serialize_with_options(&mut json, &WRITE) {
        Ok(()) => Ok(json.into_inner()),
        Err(why) => Err(Status::internal(format!("statehouse: the answer cannot be told as JSON: {why}"))),
    }
}

/// Messages that follow each other in a text.
pub struct Messages {
    descriptor: MessageDescriptor,
    /// What was not read yet.
    text: Vec<u8>,
    body: BodyDataStream,
    /// Whether the body has ended.
    ended: bool,
    /// Where to say what is wrong with it.
    complaint: Option<oneshot::Sender<Status>>,
}

impl Messages {
    /// Of a body that is still coming. What is wrong with it is told to `complaint`, after which there are no
    /// more messages.
    pub fn new(descriptor: MessageDescriptor, body: Body, complaint: oneshot::Sender<Status>) -> Messages {
        let (text, body) = (Vec::new(), body.into_data_stream());
        Messages { descriptor, text, body, ended: false, complaint: Some(complaint) }
    }

    /// Of a body that is all there.
    pub fn of_whole(descriptor: MessageDescriptor, text: &[u8]) -> Messages {
        let body = Body::empty().into_data_stream();
        Messages { descriptor, text: text.to_vec(), body, ended: true, complaint: None }
    }

    /// The next message, if the text that is there begins with a whole one. `None`: there is none yet.
    ///
    /// # Errors
    /// The text is no JSON, ends within a message, or says what the message cannot hold.
    pub fn next_whole(&mut self) -> Result<Option<DynamicMessage>, Status> {
        let mut values = serde_json::Deserializer::from_slice(&self.text).into_iter::<Value>();
        let value = match values.next() {
            None => None,
            Some(Err(why)) if why.is_eof() && !self.ended => return Ok(None),
            Some(Err(why)) if why.is_eof() => return Err(Status::invalid_argument("unexpected EOF")),
            Some(Err(why)) => {
                let words = words::syntax(&self.text).unwrap_or_else(|| format!("no JSON: {why}"));
                return Err(Status::invalid_argument(words));
            }
            Some(Ok(value)) => Some(value),
        };
        let read = values.byte_offset();
        let message = value.map(|value| {
            DynamicMessage::deserialize_with_options(self.descriptor.clone(), value, &READ).map_err(|why| {
                let words = words::misfit(&self.text[..read], &self.descriptor);
                Status::invalid_argument(words.unwrap_or_else(|| format!("proto: {why}")))
            })
        });
        self.text.drain(..read);
        message.transpose()
    }

    /// The messages as they come.
    pub fn into_stream(self) -> impl Stream<Item = DynamicMessage> + Send + 'static {
        stream::unfold(self, async |mut messages| match messages.receive().await {
            Ok(message) => Some((message?, messages)),
            Err(why) => {
                let text = format!("Failed to decode request: {}", why.message());
                if let Some(complaint) = messages.complaint.take() {
                    // Nobody listens when the client has gone.
                    let _ = complaint.send(Status::invalid_argument(text));
                }
                None
            }
        })
    }

    async fn receive(&mut self) -> Result<Option<DynamicMessage>, Status> {
        loop {
            let message = self.next_whole()?;
            if message.is_some() || self.ended {
                return Ok(message);
            }
            if self.text.len() > STREAMED_BYTES_MAX {
                let text = format!("a message of a stream is over {STREAMED_BYTES_MAX} bytes of JSON");
                return Err(Status::invalid_argument(text));
            }
            match self.body.next().await {
                Some(Ok(more)) => self.text.extend_from_slice(&more),
                // A connection that broke ends the requests as well: there is nobody to tell.
                Some(Err(_)) | None => self.ended = true,
            }
        }
    }
}

/// Sends and receives messages that are known by their descriptors.
pub struct DynamicCodec {
    answers: MessageDescriptor,
}

impl DynamicCodec {
    /// For a method with such answers.
    pub fn new(answers: MessageDescriptor) -> DynamicCodec {
        DynamicCodec { answers }
    }
}

impl Codec for DynamicCodec {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = DynamicEncoder;
    type Decoder = DynamicDecoder;

    fn encoder(&mut self) -> DynamicEncoder {
        DynamicEncoder
    }

    fn decoder(&mut self) -> DynamicDecoder {
        DynamicDecoder { answers: self.answers.clone() }
    }
}

/// Writes requests.
pub struct DynamicEncoder;

impl Encoder for DynamicEncoder {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, message: DynamicMessage, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.encode(out).map_err(|why| Status::internal(format!("statehouse: {why}")))
    }
}

/// Reads answers.
pub struct DynamicDecoder {
    answers: MessageDescriptor,
}

impl Decoder for DynamicDecoder {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let message = DynamicMessage::decode(self.answers.clone(), bytes);
        message.map(Some).map_err(|why| Status::internal(format!("statehouse: an odd answer: {why}")))
    }
}
