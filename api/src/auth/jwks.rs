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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Public keys of RFC 7517 A.1 and RFC 8037 A.2.
    fn rsa() -> Value {
        json!({"kty": "RSA", "e": "AQAB", "kid": "r", "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"})
    }

    fn p256() -> Value {
        json!({"kty": "EC", "crv": "P-256", "kid": "e", "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"})
    }

    fn ed25519() -> Value {
        json!({"kty": "OKP", "crv": "Ed25519", "kid": "d", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"})
    }

    fn with(mut key: Value, member: &str, value: &str) -> Value {
        key[member] = value.into();
        key
    }

    fn algorithm(key: Value) -> Option<Algorithm> {
        serde_json::from_value(key).ok().and_then(|jwk| algorithm_of(&jwk))
    }

    #[test]
    fn the_key_fixes_the_algorithm() {
        assert_eq!(algorithm(rsa()), Some(Algorithm::RS256));
        assert_eq!(algorithm(p256()), Some(Algorithm::ES256));
        assert_eq!(algorithm(ed25519()), Some(Algorithm::EdDSA));
        assert_eq!(algorithm(with(rsa(), "alg", "RS256")), Some(Algorithm::RS256));
        assert_eq!(algorithm(with(rsa(), "use", "sig")), Some(Algorithm::RS256));
    }

    #[test]
    fn other_keys_are_passed_over() {
        let shared = json!({"kty": "oct", "kid": "h", "alg": "HS256", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMko"});
        for key in [
            shared,
            with(rsa(), "alg", "RS512"),
            with(rsa(), "alg", "HS256"),
            with(rsa(), "use", "enc"),
            with(p256(), "crv", "P-384"),
            json!({"kty": "RSA"}),
        ] {
            assert_eq!(algorithm(key.clone()), None, "{key}");
        }
    }

    fn jwks() -> Jwks {
        let jwks = Jwks::new(String::new(), "https://id.example".to_owned(), None);
        let keys =
            [rsa(), p256(), ed25519()].map(|key| jwks.provider_key(&serde_json::from_value(key).unwrap()).unwrap());
        *jwks.keys.write().unwrap() = Arc::new(keys.into());
        jwks
    }

    #[test]
    fn a_token_does_not_choose_its_algorithm_nor_an_unknown_key() {
        let jwks = jwks();
        let claims = json!({"iss": "https://id.example", "sub": "x", "exp": 4_000_000_000_u64});
        for (algorithm, kid) in [(Algorithm::HS256, "r"), (Algorithm::HS256, "d"), (Algorithm::HS256, "nobody")] {
            let mut header = jsonwebtoken::Header::new(algorithm);
            header.kid = Some(kid.to_owned());
            let secret = jsonwebtoken::EncodingKey::from_secret(b"the public key is no secret, so it must not verify");
            let token = jsonwebtoken::encode(&header, &claims, &secret).unwrap();
            assert_eq!(jwks.verify(&token), Err(TokenError::Invalid));
        }
        assert_eq!(jwks.verify("nonsense"), Err(TokenError::Invalid));
    }

    #[test]
    fn a_subject_that_is_no_uuid_has_one_derived() {
        let jwks = jwks();
        let uuid = Uuid::from_u128(7);
        assert_eq!(jwks.buyer(&uuid.to_string()), UserId(uuid));
        let derived = jwks.buyer("auth0|123");
        assert_eq!((derived, derived.0.get_version_num()), (jwks.buyer("auth0|123"), 5));
        let other = Jwks::new(String::new(), "https://other.example".to_owned(), None);
        assert_ne!(derived, other.buyer("auth0|123"));
    }
}
