//! Frames: the pieces in which everything travels between nodes.
//!
//! A frame: length of its payload (4 bytes, little-endian), kind (1 byte), crc32 over both and the payload
//! (4 bytes, little-endian), payload.
//!
//! Pure. Promises: what comes out is what another node put in, byte for byte, or an error that says what was
//! wrong. Must never take memory because a length says so: a buffer grows only as bytes arrive, and a length
//! over the limit is told when its five bytes are there. After an error there is no next frame: whoever reads
//! closes the connection.

use bytes::{BufMut, Bytes, BytesMut};

/// What stands before each payload.
pub(super) const HEADER_BYTES: usize = 9;
/// Where the sum begins: after length and kind.
const SUM_AT: usize = 5;
/// What a read asks room for when no more is known.
const READ_BYTES: usize = 64 << 10;
/// What a read asks room for at most; also the largest frame whose memory serves the next ones.
const GROWTH_BYTES: usize = 1 << 20;

/// What a payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Who connects, and what for.
    Greeting = 1,
    /// Come in.
    Welcome = 2,
    /// Stay out, and why.
    Refusal = 3,
    /// Still here.
    Beat = 4,
    /// What replicas tell each other.
    Messages = 5,
    /// A request to the other node's host.
    Ask = 6,
    /// The answer to one.
    Answer = 7,
    /// A wish for a file.
    Fetch = 8,
    /// The file is here: this long.
    Found = 9,
    /// The file does not come, or no further.
    Withheld = 10,
    /// A piece of the file.
    Piece = 11,
    /// This node goes: requests without an answer by now were not taken up, and none will be.
    Farewell = 12,
    /// How old this node's data is by now.
    Age = 13,
}

const KINDS: [Kind; 13] = [
    Kind::Greeting,
    Kind::Welcome,
    Kind::Refusal,
    Kind::Beat,
    Kind::Messages,
    Kind::Ask,
    Kind::Answer,
    Kind::Fetch,
    Kind::Found,
    Kind::Withheld,
    Kind::Piece,
    Kind::Farewell,
    Kind::Age,
];

/// One frame as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// What the payload is.
    pub(super) kind: Kind,
    /// The payload; shares the memory of the connection's buffer.
    pub(super) payload: Bytes,
}

/// Bytes that are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("a frame of {bytes} bytes, the limit is {bytes_max}")]
    TooLong { bytes: usize, bytes_max: usize },
    #[error("a frame of the unknown kind {0}")]
    UnknownKind(u8),
    #[error("a frame whose checksum is {found:08x} and should be {expected:08x}")]
    Damaged { found: u32, expected: u32 },
}

/// A frame that is being written: where it begins.
#[must_use = "a frame has to be ended"]
pub(super) struct Open(usize);

/// Begins a frame at the end of `out`; its payload is whatever is put there before it is ended.
pub(super) fn begin(out: &mut BytesMut) -> Open {
    let open = Open(out.len());
    out.put_bytes(0, HEADER_BYTES);
    open
}

impl Open {
    /// How long the payload is by now.
    pub(super) fn payload_bytes(&self, out: &BytesMut) -> usize {
        out.len() - self.0 - HEADER_BYTES
    }

    /// Ends the frame.
    pub(super) fn end(self, out: &mut BytesMut, kind: Kind) {
        let bytes = u32::try_from(self.payload_bytes(out)).expect("whoever writes keeps to the limit");
        let (header, payload) = out[self.0..].split_at_mut(HEADER_BYTES);
        header[..4].copy_from_slice(&bytes.to_le_bytes());
        header[4] = kind as u8;
        let sum = sum(&header[..SUM_AT], payload);
        header[SUM_AT..].copy_from_slice(&sum.to_le_bytes());
    }
}

/// Writes a whole frame whose payload is a message.
pub(super) fn put(out: &mut BytesMut, kind: Kind, message: &impl prost::Message) {
    let open = begin(out);
    message.encode(out).expect("the buffer grows");
    open.end(out, kind);
}

fn sum(head: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(payload);
    hasher.finalize()
}

/// Cuts what arrives into frames.
pub(super) struct Decoder {
    buffer: BytesMut,
    payload_bytes_max: usize,
}

impl Decoder {
    /// For payloads up to this size.
    pub(super) fn new(payload_bytes_max: usize) -> Decoder {
        Decoder { buffer: BytesMut::new(), payload_bytes_max }
    }

    /// From the next frame on, payloads may be this long.
    pub(super) fn raise_limit(&mut self, payload_bytes_max: usize) {
        self.payload_bytes_max = payload_bytes_max;
    }

    /// Where to put what arrives: has room for some of it.
    pub(super) fn room(&mut self) -> &mut BytesMut {
        let wanted = match self.header() {
            Ok(Some((bytes, _))) => (HEADER_BYTES + bytes).saturating_sub(self.buffer.len()),
            _ => READ_BYTES,
        };
        self.buffer.reserve(wanted.clamp(READ_BYTES, GROWTH_BYTES));
        &mut self.buffer
    }

    /// Whether a frame has begun to arrive.
    pub(super) fn is_amid(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Takes so many bytes that are no frame; none if they have not arrived yet.
    pub(super) fn take_raw(&mut self, bytes: usize) -> Option<BytesMut> {
        (self.buffer.len() >= bytes).then(|| self.buffer.split_to(bytes))
    }

    /// The next frame; none if it has not arrived yet.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some((bytes, kind)) = self.header()? else { return Ok(None) };
        if self.buffer.len() < HEADER_BYTES + bytes {
            return Ok(None);
        }
        let mut payload = self.buffer.split_to(HEADER_BYTES + bytes);
        if bytes > GROWTH_BYTES {
            // Otherwise the connection would hold the memory of its largest frame for ever.
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        let header = payload.split_to(HEADER_BYTES);
        let expected = sum(&header[..SUM_AT], &payload);
        let found = u32::from_le_bytes(header[SUM_AT..].try_into().expect("the header's last four bytes"));
        if found != expected {
            return Err(FrameError::Damaged { found, expected });
        }
        Ok(Some(Frame { kind, payload: payload.freeze() }))
    }

    /// The payload's length and kind, as soon as they are there.
    fn header(&self) -> Result<Option<(usize, Kind)>, FrameError> {
        let Some((length, rest)) = self.buffer.split_first_chunk::<4>() else { return Ok(None) };
        let Some(&kind) = rest.first() else { return Ok(None) };
        let bytes = u32::from_le_bytes(*length) as usize;
        if bytes > self.payload_bytes_max {
            return Err(FrameError::TooLong { bytes, bytes_max: self.payload_bytes_max });
        }
        let known = KINDS.into_iter().find(|known| *known as u8 == kind);
        Ok(Some((bytes, known.ok_or(FrameError::UnknownKind(kind))?)))
    }

    /// What the buffer holds in memory, whether filled or not.
    #[cfg(test)]
    fn memory_bytes(&self) -> usize {
        self.buffer.capacity()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 100_000;

    fn written(frames: &[(Kind, Vec<u8>)]) -> BytesMut {
        let mut out = BytesMut::new();
        for (kind, payload) in frames {
            let open = begin(&mut out);
            out.extend_from_slice(payload);
            assert_eq!(open.payload_bytes(&out), payload.len());
            open.end(&mut out, *kind);
        }
        out
    }

    /// Feeds `bytes` in pieces of the given sizes, over and over.
    fn read(bytes: &[u8], pieces: &[usize]) -> (Vec<Frame>, Result<bool, FrameError>) {
        let mut decoder = Decoder::new(LIMIT);
        let (mut frames, mut rest) = (Vec::new(), bytes);
        for piece in pieces.iter().cycle() {
            let (now, later) = rest.split_at((*piece).min(rest.len()));
            decoder.room().extend_from_slice(now);
            loop {
                match decoder.next() {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(error) => return (frames, Err(error)),
                }
            }
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        (frames, Ok(decoder.is_amid()))
    }

    fn any_frames() -> impl Strategy<Value = Vec<(Kind, Vec<u8>)>> {
        let payload = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..40),
            (0..LIMIT).prop_map(|bytes| vec![bytes as u8; bytes]),
        ];
        prop::collection::vec((prop::sample::select(&KINDS[..]), payload), 1..6)
    }

    proptest! {
        #[test]
        fn frames_arrive_as_they_were_put_however_they_are_cut(
            frames in any_frames(), pieces in prop::collection::vec(1..70_000usize, 1..4)
        ) {
            let (found, end) = read(&written(&frames), &pieces);
            prop_assert_eq!(end, Ok(false));
            let found: Vec<_> = found.into_iter().map(|f| (f.kind, f.payload.to_vec())).collect();
            prop_assert_eq!(found, frames);
        }

        #[test]
        fn a_flipped_bit_never_gets_through(
            frames in any_frames(), at in any::<prop::sample::Index>(), bit in 0..8u8
        ) {
            let mut bytes = written(&frames);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let (found, end) = read(&bytes, &[50_000]);
            // The frames before it are whole; then there is an error, or a length that waits for more.
            prop_assert!(end != Ok(false), "nothing was noticed");
            prop_assert!(found.len() < frames.len());
            for (found, put) in found.iter().zip(&frames) {
                prop_assert_eq!((found.kind, &found.payload[..]), (put.0, &put.1[..]));
            }
        }

        #[test]
        fn what_is_cut_short_waits_for_the_rest(
            frames in any_frames(), at in any::<prop::sample::Index>()
        ) {
            let bytes = written(&frames);
            let kept = at.index(bytes.len());
            let (found, end) = read(&bytes[..kept], &[999]);
            prop_assert!(end.is_ok() && found.len() < frames.len());
        }

        #[test]
        fn garbage_never_takes_more_memory_than_the_limit_allows(
            garbage in prop::collection::vec(any::<u8>(), 0..3_000)
        ) {
            let mut decoder = Decoder::new(LIMIT);
            decoder.room().extend_from_slice(&garbage);
            while let Ok(Some(_)) = decoder.next() {}
            decoder.room();
            prop_assert!(decoder.memory_bytes() <= 2 * (LIMIT + READ_BYTES), "{}", decoder.memory_bytes());
        }
    }

    #[test]
    fn a_length_is_believed_only_as_far_as_bytes_arrive() {
        let mut decoder = Decoder::new(1 << 30);
        let mut header = (1u32 << 30).to_le_bytes().to_vec();
        header.push(Kind::Messages as u8);
        decoder.room().extend_from_slice(&header);
        assert_eq!(decoder.next(), Ok(None));
        decoder.room();
        assert!(decoder.memory_bytes() <= 2 * GROWTH_BYTES, "{}", decoder.memory_bytes());
    }

    #[test]
    fn a_length_over_the_limit_is_told_before_its_bytes_come() {
        let mut decoder = Decoder::new(LIMIT);
        decoder.room().extend_from_slice(&(LIMIT as u32 + 1).to_le_bytes());
        assert_eq!(decoder.next(), Ok(None));
        decoder.room().put_u8(Kind::Beat as u8);
        let expected = FrameError::TooLong { bytes: LIMIT + 1, bytes_max: LIMIT };
        assert_eq!(decoder.next(), Err(expected));
    }

    #[test]
    fn the_memory_of_a_large_frame_is_not_kept() {
        const LARGE: usize = 8 << 20;
        let mut decoder = Decoder::new(LARGE);
        let bytes = written(&[(Kind::Messages, vec![7; LARGE]), (Kind::Beat, vec![])]);
        for piece in bytes.chunks(READ_BYTES) {
            decoder.room().extend_from_slice(piece);
            while let Some(frame) = decoder.next().unwrap() {
                assert!(frame.kind == Kind::Beat || frame.payload.len() == LARGE);
            }
        }
        decoder.room();
        assert!(decoder.memory_bytes() <= GROWTH_BYTES, "{}", decoder.memory_bytes());
    }
}
