//! Many keys, a page at a time, all as of one revision: the machine bounds its answers.

use prost::Message;
use statehouse_kv::messages::{RangeRequest, RangeResponse};
use statehouse_kv::{Call, Kind, code};
use tonic::{Code, Status};

use super::{Front, STALE, odd};
use crate::node::request::Consistency;

/// Keys of a page, unless they are large.
const KEYS_MAX: i64 = 5_000;

/// The keys of a range in their order.
pub struct Pages<'f> {
    front: &'f Front,
    /// What is still to be asked for; `None` after the last page.
    request: Option<RangeRequest>,
    revision: i64,
    /// Keys that were asked for and are still wanted; 0: all.
    limit: i64,
}

impl<'f> Pages<'f> {
    /// All keys at a revision (0: as it is here now).
    pub async fn of_all(front: &'f Front, revision: i64) -> Result<Pages<'f>, Status> {
        let revision = if revision > 0 { revision } else { front.revision().await? };
        let all =
            RangeRequest { key: vec![0], range_end: vec![0], uncounted: true, ..RangeRequest::default() };
        Ok(Pages::of(front, RangeRequest { revision, ..all }))
    }

    /// Those of a request that names its revision, and sorts by nothing. Only the first page has the count.
    pub fn of(front: &'f Front, request: RangeRequest) -> Pages<'f> {
        let (revision, limit) = (request.revision, request.limit.max(0));
        let page = if limit == 0 { KEYS_MAX } else { KEYS_MAX.min(limit) };
        Pages { front, request: Some(RangeRequest { limit: page, ..request }), revision, limit }
    }

    /// The revision that all pages are of.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The next page; `None` after the last one.
    pub async fn next(&mut self) -> Result<Option<RangeResponse>, Status> {
        let Some(mut request) = self.request.take() else { return Ok(None) };
        let page = loop {
            // A replica here has the revision already; whichever else is asked may not.
            let consistency = match self.front.replica() {
                Some(_) => STALE,
                None => Consistency::Linearizable,
            };
            match self.front.query(Kind::Range, &request.encode_to_vec(), consistency).await {
                Ok(answer) => break RangeRequest::answer(&answer).map_err(|why| odd(&why))?,
                Err(why) if is_too_large(&why) && request.limit > 1 => request.limit /= 2,
                Err(why) => return Err(why),
            }
        };
        let taken = page.kvs.len() as i64;
        let wanted = self.limit == 0 || taken < self.limit;
        if self.limit > 0 {
            self.limit -= taken;
        }
        if page.more
            && wanted
            && let Some(last) = page.kvs.last()
        {
            let mut key = last.key.clone();
            key.push(0);
            let limit = if self.limit == 0 { KEYS_MAX } else { KEYS_MAX.min(self.limit) };
            self.request = Some(RangeRequest { key, limit, uncounted: true, ..request });
        }
        Ok(Some(page))
    }
}

/// Whether the machine refused to answer with so much at once.
pub fn is_too_large(why: &Status) -> bool {
    why.code() == Code::from_i32(code::RESOURCE_EXHAUSTED as i32)
}
