//! Access tokens of an identity provider: its keys are fetched from its JWKS, kept fresh in the background, and asked for again when a
//! token names one that is not known. The algorithm is fixed by the key, never by the token.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use common::ids::UserId;
use common::keys::TokenError;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How often the keys are fetched anyway.
const REFRESH: Duration = Duration::from_mins(5);
/// The least time between two fetches, whoever asks for a key that is not there.
const REFRESH_MIN: Duration = Duration::from_secs(30);
/// Between tries while there are no keys at all.
const RETRY: Duration = Duration::from_secs(1);
/// How long a fetch may take.
const FETCH_MAX: Duration = Duration::from_secs(5);
/// How large a JWKS may be, in bytes.
const JWKS_BYTES_MAX: u64 = 1 << 20;
/// How far the provider's clock may be off, in seconds.
const LEEWAY_SECONDS: u64 = 30;

/// The provider.
pub(crate) struct Jwks {
    url: String,
    issuer: String,
    audience: Option<String>,
    keys: RwLock<Arc<HashMap<String, ProviderKey>>>,
    wanted: Notify,
}

struct ProviderKey {
    key: DecodingKey,
    validation: Validation,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
}

impl Jwks {
    /// The provider whose keys are at `url` and who signs as `issuer`, for `audience` (None: for anybody).
    pub(crate) fn new(url: String, issuer: String, audience: Option<String>) -> Self {
        Self { url, issuer, audience, keys: RwLock::default(), wanted: Notify::new() }
    }

    /// The buyer that a token speaks of.
    ///
    /// # Errors
    /// [`TokenError`]
    pub(crate) fn verify(&self, token: &str) -> Result<UserId, TokenError> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Invalid)?;
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(key) = header.kid.as_ref().and_then(|kid| keys.get(kid)) else {
            self.wanted.notify_one();
            return Err(TokenError::Invalid);
        };
        let claims = jsonwebtoken::decode::<Claims>(token, &key.key, &key.validation);
        let claims = claims.map_err(|error| match error.kind() {
            jsonwebtoken::errors::ErrorKind::ExpiredSignature => TokenError::Expired,
            _ => TokenError::Invalid,
        })?;
        Ok(self.buyer(&claims.claims.sub))
    }

    /// A subject that is a UUID is the buyer's id; any other has one derived from issuer and subject.
    fn buyer(&self, subject: &str) -> UserId {
        UserId(Uuid::try_parse(subject).unwrap_or_else(|_| {
            let namespace = Uuid::new_v5(&Uuid::NAMESPACE_URL, self.issuer.as_bytes());
            Uuid::new_v5(&namespace, subject.as_bytes())
        }))
    }

    /// Fetches the keys, again and again, until `stop`.
    pub(crate) async fn keep_fresh(&self, stop: CancellationToken) {
        loop {
            let fetched_at = Instant::now();
            let pause = match self.fetch().await {
                Ok(count) => {
                    tracing::info!(keys = count, "the identity provider's keys are fetched");
                    REFRESH_MIN
                }
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "the identity provider's keys cannot be fetched");
                    if self.is_empty() { RETRY } else { REFRESH_MIN }
                }
            };
            let again = async {
                tokio::time::sleep(pause).await;
                let rest = REFRESH.saturating_sub(fetched_at.elapsed());
                if !self.is_empty() {
                    let _ = tokio::time::timeout(rest, self.wanted.notified()).await;
                }
            };
            tokio::select! {
                () = again => {}
                () = stop.cancelled() => return,
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    async fn fetch(&self) -> anyhow::Result<usize> {
        let url = self.url.clone();
        let set = tokio::task::spawn_blocking(move || download(&url)).await.context("the fetch was cut off")??;
        let keys: HashMap<String, ProviderKey> = set.keys.iter().filter_map(|jwk| self.provider_key(jwk)).collect();
        anyhow::ensure!(!keys.is_empty(), "the JWKS has no key for RS256, ES256 or EdDSA with a `kid`");
        let count = keys.len();
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(count)
    }

    fn provider_key(&self, jwk: &Jwk) -> Option<(String, ProviderKey)> {
        let kid = jwk.common.key_id.clone()?;
        let algorithm = algorithm_of(jwk)?;
        let key = DecodingKey::from_jwk(jwk).ok()?;
        let mut validation = Validation::new(algorithm);
        validation.set_issuer(&[&self.issuer]);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        if let Some(audience) = &self.audience {
            validation.set_audience(&[audience]);
            validation.set_required_spec_claims(&["exp", "iss", "sub", "aud"]);
        } else {
            validation.validate_aud = false;
            validation.set_required_spec_claims(&["exp", "iss", "sub"]);
        }
        Some((kid, ProviderKey { key, validation }))
    }
}

fn download(url: &str) -> anyhow::Result<JwkSet> {
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(FETCH_MAX)).build().into();
    let mut response = agent.get(url).call()?;
    let text = response.body_mut().with_config().limit(JWKS_BYTES_MAX).read_to_string()?;
    // Key by key: one of a kind that is not known here must not hide the others.
    let set: RawSet = serde_json::from_str(&text).context("this is no JWKS")?;
    Ok(JwkSet { keys: set.keys.into_iter().filter_map(|key| serde_json::from_value(key).ok()).collect() })
}

#[derive(Deserialize)]
struct RawSet {
    keys: Vec<serde_json::Value>,
}

/// The one algorithm that a key signs with: `RS256`, `ES256` or `EdDSA`; None for keys of other kinds or uses.
fn algorithm_of(jwk: &Jwk) -> Option<Algorithm> {
    if jwk.common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature) {
        return None;
    }
    let (algorithm, name) = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        _ => return None,
    };
    jwk.common.key_algorithm.is_none_or(|stated| stated == name).then_some(algorithm)
}
