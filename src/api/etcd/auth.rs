//! etcd's service `Auth`, as it answers while authentication is disabled and nobody was entered. Users and
//! roles cannot be: there would be nothing that asks for them.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{Front, status};
use crate::proto::etcd::authpb::Permission;
use crate::proto::etcd::etcdserverpb as pb;
use crate::proto::etcd::etcdserverpb::auth_server::Auth;

/// The revision of etcd's list of users before anybody changed it.
const FIRST_REVISION: u64 = 1;

/// The service.
pub struct AuthService(pub(super) Arc<Front>);

fn not_kept<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented(status::ours(
        "there are no users and roles here: authentication is disabled and stays so",
    )))
}

fn said<T>(said: status::Said) -> Result<Response<T>, Status> {
    Err(said.into())
}

/// Whether a permission is for a key, for the keys before another one, or for all from a key on.
fn is_range(permission: &Permission) -> bool {
    let Permission { key, range_end, .. } = permission;
    let ends_after = range_end.is_empty() || *range_end == [0][..] || key < range_end;
    !key.is_empty() && ends_after
}

#[tonic::async_trait]
impl Auth for AuthService {
    async fn auth_enable(
        &self,
        _: Request<pb::AuthEnableRequest>,
    ) -> Result<Response<pb::AuthEnableResponse>, Status> {
        said(status::ROOT_USER_NOT_THERE)
    }

    async fn auth_disable(
        &self,
        _: Request<pb::AuthDisableRequest>,
    ) -> Result<Response<pb::AuthDisableResponse>, Status> {
        Ok(Response::new(pb::AuthDisableResponse { header: self.0.header().await? }))
    }

    async fn auth_status(
        &self,
        _: Request<pb::AuthStatusRequest>,
    ) -> Result<Response<pb::AuthStatusResponse>, Status> {
        let header = self.0.header().await?;
        Ok(Response::new(pb::AuthStatusResponse { header, enabled: false, auth_revision: FIRST_REVISION }))
    }

    async fn authenticate(
        &self,
        _: Request<pb::AuthenticateRequest>,
    ) -> Result<Response<pb::AuthenticateResponse>, Status> {
        said(status::AUTH_NOT_ENABLED)
    }

    async fn user_add(
        &self,
        request: Request<pb::AuthUserAddRequest>,
    ) -> Result<Response<pb::AuthUserAddResponse>, Status> {
        if request.get_ref().name.is_empty() { said(status::USER_EMPTY) } else { not_kept() }
    }

    async fn user_get(
        &self,
        _: Request<pb::AuthUserGetRequest>,
    ) -> Result<Response<pb::AuthUserGetResponse>, Status> {
        said(status::USER_NOT_FOUND)
    }

    async fn user_list(
        &self,
        _: Request<pb::AuthUserListRequest>,
    ) -> Result<Response<pb::AuthUserListResponse>, Status> {
        Ok(Response::new(pb::AuthUserListResponse { header: self.0.header().await?, users: Vec::new() }))
    }

    async fn user_delete(
        &self,
        _: Request<pb::AuthUserDeleteRequest>,
    ) -> Result<Response<pb::AuthUserDeleteResponse>, Status> {
        said(status::USER_NOT_FOUND)
    }

    async fn user_change_password(
        &self,
        _: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Result<Response<pb::AuthUserChangePasswordResponse>, Status> {
        said(status::USER_NOT_FOUND)
    }

    async fn user_grant_role(
        &self,
        _: Request<pb::AuthUserGrantRoleRequest>,
    ) -> Result<Response<pb::AuthUserGrantRoleResponse>, Status> {
        said(status::USER_NOT_FOUND)
    }

    async fn user_revoke_role(
        &self,
        _: Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Result<Response<pb::AuthUserRevokeRoleResponse>, Status> {
        said(status::USER_NOT_FOUND)
    }

    async fn role_add(
        &self,
        request: Request<pb::AuthRoleAddRequest>,
    ) -> Result<Response<pb::AuthRoleAddResponse>, Status> {
        if request.get_ref().name.is_empty() { said(status::ROLE_EMPTY) } else { not_kept() }
    }

    async fn role_get(
        &self,
        _: Request<pb::AuthRoleGetRequest>,
    ) -> Result<Response<pb::AuthRoleGetResponse>, Status> {
        said(status::ROLE_NOT_FOUND)
    }

    async fn role_list(
        &self,
        _: Request<pb::AuthRoleListRequest>,
    ) -> Result<Response<pb::AuthRoleListResponse>, Status> {
        Ok(Response::new(pb::AuthRoleListResponse { header: self.0.header().await?, roles: Vec::new() }))
    }

    async fn role_delete(
        &self,
        _: Request<pb::AuthRoleDeleteRequest>,
    ) -> Result<Response<pb::AuthRoleDeleteResponse>, Status> {
        said(status::ROLE_NOT_FOUND)
    }

    async fn role_grant_permission(
        &self,
        request: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<pb::AuthRoleGrantPermissionResponse>, Status> {
        match &request.get_ref().perm {
            None => said(status::PERMISSION_NOT_GIVEN),
            Some(permission) if !is_range(permission) => said(status::INVALID_AUTH_MANAGEMENT),
            Some(_) => said(status::ROLE_NOT_FOUND),
        }
    }

    async fn role_revoke_permission(
        &self,
        _: Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<pb::AuthRoleRevokePermissionResponse>, Status> {
        said(status::ROLE_NOT_FOUND)
    }
}
