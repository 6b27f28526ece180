//! etcd's service `Lease`. Its seconds are our milliseconds; its deadlines are ours, which are the log's.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{self, Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::methods::Form;
use super::{Front, revision_of, status};
use crate::error::Error;
use crate::machine::lease::TTL_MS_MAX;
use crate::node::renewed::moment_ms;
use crate::node::request::LeaseInfo;
use crate::proto::etcd::etcdserverpb::lease_server::Lease;
use crate::proto::etcd::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
};

/// etcd grants no shorter time, with its default election timeout.
const TTL_S_MIN: i64 = 2;
/// etcd refuses a longer one.
const TTL_S_MAX: i64 = 9_000_000_000;
/// What etcd says of a lease that is not there when it is asked how long it lives.
const NO_TTL: i64 = -1;
/// Renewals of one stream that go as one operation.
const RENEWALS_MAX: usize = 1_000;

/// What a lease lives in milliseconds that is granted for so many seconds: a moment more, so that renewals
/// which the node answers with what is left give it all its seconds still.
pub fn lifetime_ms(seconds: u64) -> u64 {
    let ms = seconds * 1_000;
    // Twice, as the moment of what lives longer is longer too.
    TTL_MS_MAX.min(ms + 2 * moment_ms(ms))
}

/// The service.
pub struct LeaseService(pub(super) Arc<Front>);

type KeepAlives = Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Lease for LeaseService {
    type LeaseKeepAliveStream = KeepAlives;

    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let LeaseGrantRequest { ttl, id } = request.into_inner();
        if ttl > TTL_S_MAX {
            return Err(status::TTL_TOO_LARGE.into());
        }
        let ttl = ttl.clamp(TTL_S_MIN, (TTL_MS_MAX / 1_000) as i64);
        let chosen = u64::try_from(id)
            .map_err(|_| Status::invalid_argument(status::ours("a lease id is no less than 0")))?;
        let granted = self.0.node().grant_lease_at(&self.0.machine, lifetime_ms(ttl as u64), chosen).await;
        let (id, revision) = granted.map_err(|why| match why {
            Error::AlreadyExists(_) => status::LEASE_EXISTS.into(),
            why => self.0.unchanged(&why),
        })?;
        let header = Some(self.0.header_at(revision_of(revision)));
        Ok(Response::new(LeaseGrantResponse { header, id: id as i64, ttl, error: String::new() }))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let id = request.into_inner().id as u64;
        let revoked = self.0.node().revoke_lease_at(&self.0.machine, id).await;
        let revision = revoked.map_err(|why| match why {
            Error::NotFound(_) => status::LEASE_NOT_FOUND.into(),
            why => self.0.unchanged(&why),
        })?;
        Ok(Response::new(LeaseRevokeResponse { header: Some(self.0.header_at(revision_of(revision))) }))
    }

    async fn lease_keep_alive(
        &self,
        requests: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<KeepAlives>, Status> {
        let front = self.0.clone();
        // Those that have arrived while others were under way go together.
        let arrived = requests.into_inner().ready_chunks(RENEWALS_MAX);
        let answers = arrived.then(move |arrived| {
            let front = front.clone();
            async move { stream::iter(front.renew(arrived).await) }
        });
        let mut stopping = self.0.serving.stopping();
        let answers = answers.flatten().take_until(async move { stopping.as_mut().await });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let (node, machine) = (self.0.node(), &self.0.machine);
        let found = match keys {
            true => node.lease_with_all_keys(machine, id as u64).await,
            false => node.lease(machine, id as u64).await,
        };
        let header = self.0.header().await?;
        let answer = match found {
            Ok(lease) => LeaseTimeToLiveResponse {
                header,
                id,
                ttl: (lease.remaining_ms / 1_000) as i64,
                granted_ttl: (lease.ttl_ms / 1_000) as i64,
                keys: if keys { lease.keys } else { Vec::new() },
            },
            Err(Error::NotFound(_)) => {
                LeaseTimeToLiveResponse { header, id, ttl: NO_TTL, ..LeaseTimeToLiveResponse::default() }
            }
            Err(why) => return Err(self.0.untold(&why)),
        };
        Ok(Response::new(answer))
    }

    async fn lease_leases(
        &self,
        _: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let leases = self.0.all_leases().await?;
        let leases = leases.iter().map(|lease| LeaseStatus { id: lease.id as i64 }).collect();
        Ok(Response::new(LeaseLeasesResponse { header: self.0.header().await?, leases }))
    }
}

impl Front {
    /// All leases of the machine, by id.
    pub(super) async fn all_leases(&self) -> Result<Vec<LeaseInfo>, Status> {
        let mut leases: Vec<LeaseInfo> = Vec::new();
        loop {
            let after = leases.last().map_or(0, |lease| lease.id);
            let page = self.node().leases(&self.machine, after, 0).await;
            let page = page.map_err(|why| self.unread(&why))?;
            leases.extend(page.leases);
            if !page.more {
                return Ok(leases);
            }
        }
    }

    /// Renews leases, and answers each request in its place.
    async fn renew(
        &self,
        requests: Vec<Result<LeaseKeepAliveRequest, Status>>,
    ) -> Vec<Result<LeaseKeepAliveResponse, Status>> {
        let leases: Vec<u64> = requests.iter().flatten().map(|request| request.id as u64).collect();
        // Of before: a client that sees the renewal of a lease must not see a revision at which it is gone.
        let header = match self.header().await {
            Ok(header) => header,
            Err(why) => return vec![Err(why)],
        };
        let mut lives = match self.node().renew_leases(&self.machine, &leases).await {
            Ok(lives) => lives.into_iter(),
            Err(why) => return vec![Err(self.untold(&why))],
        };
        let answer = |request: LeaseKeepAliveRequest| LeaseKeepAliveResponse {
            header,
            id: request.id,
            ttl: (lives.next().unwrap_or_default() / 1_000) as i64,
        };
        let mut answer = answer;
        let unread = |why| Form::Stream.in_etcds_words(why);
        requests.into_iter().map(|request| request.map(&mut answer).map_err(unread)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_lease_a_moment_after_its_renewal_are_all_its_seconds() {
        for seconds in (2..200).chain([100_000, 1_000_000_000]) {
            let ms = lifetime_ms(seconds);
            let left_ms = ms - moment_ms(ms);
            assert!((seconds * 1_000..seconds * 1_000 + 1_000).contains(&left_ms), "{seconds}: {left_ms}");
            assert_eq!(ms / 1_000, seconds);
        }
    }
}
