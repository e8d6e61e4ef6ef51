//! Buyers and operators. Who a buyer is says one of three: our own access tokens, a gateway's header, an identity provider.

use axum::http::{HeaderMap, header};
use chrono::Utc;
use common::ids::UserId;
use common::keys::{AccessClaims, AccessTokens, TokenError};
use common::problems::Slug;
use moka::sync::Cache;
use sha2::{Digest, Sha256};

use super::jwks::Jwks;
use crate::error::ApiError;
use crate::params;
use crate::state::App;
use crate::store;

/// Buyers whose row is known to be there; the row is made at the first call of a buyer that is not among them.
const KNOWN_BUYERS_MAX: u64 = 200_000;

/// Who says who a buyer is.
pub(crate) enum Identity {
    /// We do.
    Own {
        /// Signs and verifies.
        tokens: AccessTokens,
        /// How long a token is good.
        token_seconds: i64,
    },
    /// The gateway in front.
    Gateway(KnownBuyers),
    /// An identity provider.
    Jwks(Box<Jwks>, KnownBuyers),
}

impl Identity {
    /// A new access token; None if others make them.
    pub(crate) fn access_token(&self, buyer: UserId) -> Option<(String, i64)> {
        match self {
            Self::Own { tokens, token_seconds } => {
                let claims = AccessClaims::new(buyer, Utc::now(), *token_seconds);
                Some((tokens.sign(&claims), *token_seconds))
            }
            Self::Gateway(_) | Self::Jwks(..) => None,
        }
    }
}

/// Buyers who came from elsewhere and have their row.
pub(crate) struct KnownBuyers(Cache<UserId, ()>);

impl KnownBuyers {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self(Cache::new(KNOWN_BUYERS_MAX))
    }

    /// Makes the row of a buyer who is new here.
    async fn welcome(&self, app: &App, buyer: UserId) -> Result<UserId, ApiError> {
        if self.0.get(&buyer).is_none() {
            Box::pin(store::make_user(app.database()?, buyer)).await?;
            self.0.insert(buyer, ());
        }
        Ok(buyer)
    }
}

/// The buyer who calls.
///
/// # Errors
/// 401 `access-token-missing`, `access-token-invalid`; 503 if a buyer who is new here cannot be written down.
pub(crate) async fn buyer(app: &App, headers: &HeaderMap) -> Result<UserId, ApiError> {
    match &app.identity {
        Identity::Own { tokens, .. } => {
            let claims = tokens.verify(bearer(headers)?).map_err(|error| refused(&error))?;
            Ok(claims.sub)
        }
        Identity::Gateway(known) => {
            let sent = headers.get("x-user-id").ok_or_else(|| missing("X-User-Id, which the gateway sends"))?;
            let buyer = sent.to_str().ok().and_then(params::user_id).ok_or_else(|| invalid("X-User-Id is no UUID."))?;
            known.welcome(app, buyer).await
        }
        Identity::Jwks(jwks, known) => {
            let buyer = jwks.verify(bearer(headers)?).map_err(|error| refused(&error))?;
            known.welcome(app, buyer).await
        }
    }
}

/// Asks that the caller is an operator.
///
/// # Errors
/// 404 if there is no admin API, 401 for a missing or wrong key.
pub(crate) fn operator(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(key_hash) = &app.admin_key_hash else {
        return Err(ApiError::new(Slug::NotFound, "There is nothing at this path."));
    };
    // Hashes of equal length say nothing about how much of a guess was right, however long the comparison takes.
    if Sha256::digest(bearer(headers)?) == *key_hash { Ok(()) } else { Err(invalid("The admin key is wrong.")) }
}

fn bearer(headers: &HeaderMap) -> Result<&str, ApiError> {
    let value = headers.get(header::AUTHORIZATION).ok_or_else(|| missing("Authorization: Bearer <access token>"))?;
    let text = value.to_str().map_err(|_| invalid("The Authorization header is no text."))?;
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim()),
        _ => Err(missing("Authorization: Bearer <access token>")),
    }
}

fn missing(what: &str) -> ApiError {
    ApiError::new(Slug::AccessTokenMissing, format!("Send {what}."))
}

fn invalid(detail: &str) -> ApiError {
    ApiError::new(Slug::AccessTokenInvalid, detail)
}

fn refused(error: &TokenError) -> ApiError {
    match error {
        TokenError::Invalid => invalid("This is no access token that is accepted here; log in again."),
        TokenError::Expired => invalid("The access token's time is over; log in again."),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_bearer_token_is_found_and_other_schemes_are_not() {
        let with = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
            headers
        };
        assert_eq!(bearer(&with("Bearer abc")).expect("a token"), "abc");
        assert_eq!(bearer(&with("bearer abc")).expect("a token"), "abc");
        assert!(
            bearer(&with("Basic abc")).is_err() && bearer(&with("abc")).is_err() && bearer(&HeaderMap::new()).is_err()
        );
    }
}
