//! Sign-up and log-in, in deployments without an identity provider of their own.

use std::net::{IpAddr, SocketAddr};

use axum::Json;
use axum::extract::ConnectInfo;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::ids::UserId;
use common::problems::Slug;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::call::Call;
use crate::error::{ApiError, Fault, both, sensible, user_not_found};
use crate::store;

/// Characters of a name or a title.
const NAME_CHARS_MAX: usize = 100;
const SECRET_BYTES: usize = 32;

/// Who signs up.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignUpRequest {
    /// 1 to 100 characters, none of them a control character.
    #[schema(min_length = 1, max_length = 100)]
    name: String,
}

/// A new user. The secret is shown this once.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SignedUpBody {
    /// The user.
    user_id: UserId,
    /// As sent.
    name: String,
    /// To log in with; keep it, it is not shown again.
    user_secret: String,
    /// For `Authorization: Bearer`.
    access_token: String,
    /// Always `Bearer`.
    token_type: &'static str,
    /// How long the access token is good, in seconds.
    expires_in: i64,
}

/// What a user logs in with.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogInRequest {
    /// The user.
    user_id: UserId,
    /// The secret of the sign-up.
    user_secret: String,
}

/// A new access token.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LoggedInBody {
    /// For `Authorization: Bearer`.
    access_token: String,
    /// Always `Bearer`.
    token_type: &'static str,
    /// How long the access token is good, in seconds.
    expires_in: i64,
}

/// Makes a user.
#[utoipa::path(
    post, path = "/v1/users", tag = "users", request_body = SignUpRequest,
    responses((status = 201, description = "The user, with a secret that is shown once", body = SignedUpBody))
)]
pub(crate) async fn sign_up(call: Call) -> Result<Response, ApiError> {
    let user = UserId(Uuid::new_v4());
    let (access_token, expires_in) = call.app.identity.access_token(user).ok_or_else(elsewhere)?;
    call.app.limits.sign_ups.check(&address(&call))?;
    let (request, ()) = both(call.body::<SignUpRequest>()?.checked(), call.no_query())?;
    sensible(&name_faults("/name", &request.name))?;
    let user_secret = new_secret()?;
    let hash = Sha256::digest(&user_secret);
    store::users::insert_user(call.app.database()?, user, &request.name, &hash).await?;
    let body =
        SignedUpBody { user_id: user, name: request.name, user_secret, access_token, token_type: "Bearer", expires_in };
    Ok((StatusCode::CREATED, Json(body)).into_response())
}

/// Makes another access token.
#[utoipa::path(
    post, path = "/v1/access-tokens", tag = "users", request_body = LogInRequest,
    responses((status = 201, description = "An access token", body = LoggedInBody))
)]
pub(crate) async fn log_in(call: Call) -> Result<Response, ApiError> {
    let limits = &call.app.limits;
    if call.app.identity.access_token(UserId(Uuid::nil())).is_none() {
        return Err(elsewhere());
    }
    limits.logins_by_address.check(&address(&call))?;
    let (request, ()) = both(call.body::<LogInRequest>()?.checked(), call.no_query())?;
    limits.logins_by_user.check(&request.user_id)?;
    let known = store::users::secret_hash(call.app.database()?, request.user_id).await?;
    let known = known.ok_or_else(|| user_not_found(request.user_id))?;
    if !is_secret(&request.user_secret, known.as_deref()) {
        return Err(ApiError::new(Slug::AccessTokenInvalid, "The user's secret is another one."));
    }
    let (access_token, expires_in) = call.app.identity.access_token(request.user_id).ok_or_else(elsewhere)?;
    Ok((StatusCode::CREATED, Json(LoggedInBody { access_token, token_type: "Bearer", expires_in })).into_response())
}

fn elsewhere() -> ApiError {
    ApiError::new(Slug::NotFound, "Users of this deployment sign up and log in elsewhere.")
}

/// Who asks: the other end of the connection, or what the proxy in front says, where it is trusted.
fn address(call: &Call) -> IpAddr {
    let peer = call.extension::<ConnectInfo<SocketAddr>>().map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.0.ip());
    if !call.app.trusts_forwarded_for {
        return peer;
    }
    let last = call.headers().get_all("x-forwarded-for").into_iter().next_back();
    let forwarded = last.and_then(|value| value.to_str().ok()).and_then(|list| list.rsplit(',').next());
    forwarded.and_then(|text| text.trim().parse().ok()).unwrap_or(peer)
}

/// What makes no sense as a name or a title.
pub(crate) fn name_faults(pointer: &str, name: &str) -> Vec<Fault> {
    let mut faults = Vec::new();
    if !(1..=NAME_CHARS_MAX).contains(&name.chars().count()) {
        faults.push(Fault::pointer(pointer, format!("it has 1 to {NAME_CHARS_MAX} characters")));
    }
    if name.chars().any(char::is_control) {
        faults.push(Fault::pointer(pointer, "it has no control characters"));
    }
    faults
}

fn new_secret() -> Result<String, ApiError> {
    let mut bytes = [0; SECRET_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| {
        tracing::error!(%error, "the system gives no random bytes");
        ApiError::unavailable("There is no chance to be had for a secret right now.")
    })?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// Whether a secret is the one with this hash. How long that takes says nothing about either.
fn is_secret(secret: &str, hash: Option<&[u8]>) -> bool {
    let sent: [u8; 32] = Sha256::digest(secret).into();
    hash.is_some_and(|hash| bool::from(sent.ct_eq(hash)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_known_by_its_hash_alone() {
        let secret = new_secret().expect("random bytes");
        assert!(secret.len() == 43 && secret != new_secret().expect("random bytes"));
        let hash = Sha256::digest(&secret);
        assert!(is_secret(&secret, Some(&hash)));
        assert!(!is_secret("", Some(&hash)) && !is_secret(&format!("{secret}x"), Some(&hash)));
        assert!(!is_secret(&secret, None) && !is_secret(&secret, Some(&hash[..31])));
    }

    #[test]
    fn names_have_1_to_100_characters_and_no_control_characters() {
        let good = |name: &str| name_faults("/name", name).is_empty();
        assert!(good("A") && good(&"한".repeat(100)) && good("Ada Lovelace 👩‍💻"));
        assert!(!good("") && !good(&"x".repeat(101)) && !good("a\nb") && !good("a\0b") && !good("\u{85}"));
    }
}
