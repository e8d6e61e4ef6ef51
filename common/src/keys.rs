//! Access tokens and queue tokens: HS256 JWTs with a `kid`. Several keys verify, the first one signs, so keys can be changed
//! without anybody being thrown out. The algorithm is fixed by the key, never by the token.

use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit as _, Mac as _};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use thiserror::Error;

use crate::ids::{ConcertId, TokenId, UserId};

const SECRET_CHARS_MIN: usize = 32;
/// Of an HMAC-SHA256.
const SIGNATURE_BYTES: usize = 32;

/// What an access token is for: a queue token is not one, even with the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum AccessAudience {
    #[serde(rename = "boxoffice-access")]
    Access,
}

/// What a queue token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum QueueAudience {
    #[serde(rename = "boxoffice-queue")]
    Queue,
}

/// What an access token says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccessClaims {
    aud: AccessAudience,
    /// The buyer.
    pub sub: UserId,
    /// When it was signed, in seconds.
    pub iat: i64,
    /// When it ends, in seconds.
    pub exp: i64,
}

impl AccessClaims {
    /// Claims for `buyer` from `now` on, for `seconds`.
    pub fn new(buyer: UserId, now: DateTime<Utc>, seconds: i64) -> Self {
        Self { aud: AccessAudience::Access, sub: buyer, iat: now.timestamp(), exp: now.timestamp() + seconds }
    }
}

/// What a queue token says. It has no end of its own: a waiting token does not expire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QueueClaims {
    aud: QueueAudience,
    /// The buyer.
    pub sub: UserId,
    /// The token's id.
    pub jti: TokenId,
    /// The concert.
    pub concert_id: ConcertId,
    /// The place in the concert's order of joins, from 1.
    pub seq: i64,
    /// When the buyer joined, in milliseconds.
    pub issued_ms: i64,
}

impl QueueClaims {
    /// The claims of a token.
    pub fn new(token: TokenId, buyer: UserId, concert: ConcertId, seq: i64, issued_at: DateTime<Utc>) -> Self {
        Self {
            aud: QueueAudience::Queue,
            sub: buyer,
            jti: token,
            concert_id: concert,
            seq,
            issued_ms: issued_at.timestamp_millis(),
        }
    }

    /// When the buyer joined.
    pub fn issued_at(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(self.issued_ms).unwrap_or_default()
    }
}

/// Why a token is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TokenError {
    /// Not a token of ours, or changed on the way.
    #[error("the token was not signed here, or was changed")]
    Invalid,
    /// Its time is over.
    #[error("the token's time is over")]
    Expired,
}

/// The keys of one kind of token, `kid:secret[,kid:secret…]`: the first signs, all verify.
#[derive(Clone)]
pub struct KeyRing {
    keys: Vec<Key>,
}

#[derive(Clone)]
struct Key {
    header: Header,
    /// The header as each of its tokens begins: it says the same every time, so it is compared and never read.
    encoded: String,
    signs: EncodingKey,
    /// Keyed once, and copied for each token.
    verifies: Hmac<Sha256>,
}

impl Key {
    fn kid(&self) -> &str {
        self.header.kid.as_deref().unwrap_or_default()
    }
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.keys.iter().map(Key::kid)).finish()
    }
}

impl FromStr for KeyRing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let keys = text.split(',').map(parse_key).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { keys })
    }
}

fn parse_key(text: &str) -> Result<Key, String> {
    let (kid, secret) = text.trim().split_once(':').ok_or("write keys as kid:secret[,kid:secret…]")?;
    if kid.is_empty() || secret.len() < SECRET_CHARS_MIN {
        return Err(format!("a key needs a name and a secret of at least {SECRET_CHARS_MIN} characters"));
    }
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some(kid.to_owned());
    let signs = EncodingKey::from_secret(secret.as_bytes());
    let verifies = Hmac::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    let encoded = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&header).map_err(|error| error.to_string())?);
    Ok(Key { header, encoded, signs, verifies })
}

impl KeyRing {
    /// The name of the key that signs.
    pub fn signing_kid(&self) -> &str {
        self.keys[0].kid()
    }

    /// Signs the claims with the key named `kid`, or with the signing key if there is none of that name (any more).
    pub fn sign<C: Serialize>(&self, claims: &C, kid: &str) -> String {
        let key = self.keys.iter().find(|key| key.kid() == kid).unwrap_or(&self.keys[0]);
        jsonwebtoken::encode(&key.header, claims, &key.signs).expect("claims are plain members and HS256 takes any key")
    }

    fn verify<C: DeserializeOwned>(&self, token: &str) -> Result<C, TokenError> {
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Invalid)?;
        let (header, claims) = message.split_once('.').ok_or(TokenError::Invalid)?;
        let key = self.keys.iter().find(|key| key.encoded == header).ok_or(TokenError::Invalid)?;
        let mut given = [0; SIGNATURE_BYTES + 1];
        let length = URL_SAFE_NO_PAD.decode_slice(signature, &mut given).map_err(|_| TokenError::Invalid)?;
        let verifies = key.verifies.clone().chain_update(message);
        verifies.verify_slice(&given[..length]).map_err(|_| TokenError::Invalid)?;
        let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| TokenError::Invalid)?;
        serde_json::from_slice(&claims).map_err(|_| TokenError::Invalid)
    }
}

/// Signs and verifies access tokens.
#[derive(Clone)]
pub struct AccessTokens {
    ring: KeyRing,
}

impl AccessTokens {
    /// With these keys.
    pub fn new(ring: KeyRing) -> Self {
        Self { ring }
    }

    /// A token for these claims.
    pub fn sign(&self, claims: &AccessClaims) -> String {
        self.ring.sign(claims, self.ring.signing_kid())
    }

    /// The claims of a token that is ours and not over.
    ///
    /// # Errors
    /// [`TokenError`]
    pub fn verify(&self, token: &str) -> Result<AccessClaims, TokenError> {
        let claims: AccessClaims = self.ring.verify(token)?;
        if claims.exp > Utc::now().timestamp() { Ok(claims) } else { Err(TokenError::Expired) }
    }
}

/// Signs and verifies queue tokens.
#[derive(Clone)]
pub struct QueueTokens {
    ring: KeyRing,
}

impl QueueTokens {
    /// With these keys.
    pub fn new(ring: KeyRing) -> Self {
        Self { ring }
    }

    /// The name of the key for new tokens.
    pub fn signing_kid(&self) -> &str {
        self.ring.signing_kid()
    }

    /// The name of the key that signed a token, by its own account.
    pub fn kid(&self, token: &str) -> Option<String> {
        jsonwebtoken::decode_header(token).ok()?.kid
    }

    /// The token's string: the same each time, as long as the key named `kid` is there.
    pub fn sign(&self, claims: &QueueClaims, kid: &str) -> String {
        self.ring.sign(claims, kid)
    }

    /// The claims of a token that is ours.
    ///
    /// # Errors
    /// [`TokenError`]
    pub fn verify(&self, token: &str) -> Result<QueueClaims, TokenError> {
        self.ring.verify(token)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const OLD: &str = "old:an old secret of more than 32 characters";
    const NEW: &str = "new:a new secret of more than 32 characters.";

    fn ring(text: &str) -> KeyRing {
        text.parse().unwrap()
    }

    fn access() -> AccessClaims {
        AccessClaims::new(UserId(Uuid::from_u128(1)), Utc::now(), 60)
    }

    fn queue() -> QueueClaims {
        QueueClaims::new(TokenId(Uuid::from_u128(2)), access().sub, ConcertId(3), 4, Utc::now())
    }

    #[test]
    fn a_token_says_what_was_signed() {
        let tokens = AccessTokens::new(ring(OLD));
        assert_eq!(tokens.verify(&tokens.sign(&access())).unwrap().sub, access().sub);
        let tokens = QueueTokens::new(ring(OLD));
        let claims = queue();
        assert_eq!(tokens.verify(&tokens.sign(&claims, "old")).unwrap(), claims);
    }

    #[test]
    fn one_kind_of_token_is_not_the_other_even_with_the_same_key() {
        let (access_tokens, queue_tokens) = (AccessTokens::new(ring(OLD)), QueueTokens::new(ring(OLD)));
        assert_eq!(access_tokens.verify(&queue_tokens.sign(&queue(), "old")), Err(TokenError::Invalid));
        assert_eq!(queue_tokens.verify(&access_tokens.sign(&access())), Err(TokenError::Invalid));
    }

    #[test]
    fn what_was_changed_or_signed_elsewhere_or_is_over_is_refused() {
        let tokens = AccessTokens::new(ring(OLD));
        let good = tokens.sign(&access());
        assert_eq!(tokens.verify(&good[..good.len() - 1]), Err(TokenError::Invalid));
        assert_eq!(tokens.verify("nonsense"), Err(TokenError::Invalid));
        let (message, signature) = good.rsplit_once('.').unwrap();
        // The last character has two bits that say nothing: only one way to write them counts.
        let last = signature.bytes().last().unwrap();
        let unused_bits = format!("{}{}", &signature[..signature.len() - 1], char::from(last + 1));
        for other in
            ["=", "A", "AA", &"A".repeat(100)].map(|more| format!("{signature}{more}")).into_iter().chain([unused_bits])
        {
            assert_eq!(tokens.verify(&format!("{message}.{other}")), Err(TokenError::Invalid), "{other}");
        }
        assert_eq!(tokens.verify(&format!("{message}.")), Err(TokenError::Invalid));
        assert_eq!(AccessTokens::new(ring(NEW)).verify(&good), Err(TokenError::Invalid));
        let over = AccessClaims::new(access().sub, Utc::now() - chrono::TimeDelta::seconds(61), 60);
        assert_eq!(tokens.verify(&tokens.sign(&over)), Err(TokenError::Expired));
    }

    #[test]
    fn the_token_does_not_choose_its_algorithm() {
        let none = "eyJhbGciOiJub25lIiwia2lkIjoib2xkIn0.e30.";
        assert_eq!(AccessTokens::new(ring(OLD)).verify(none), Err(TokenError::Invalid));
        let mut header = Header::new(Algorithm::HS512);
        header.kid = Some("old".to_owned());
        let secret = OLD.split_once(':').unwrap().1;
        let other = jsonwebtoken::encode(&header, &access(), &EncodingKey::from_secret(secret.as_bytes())).unwrap();
        assert_eq!(AccessTokens::new(ring(OLD)).verify(&other), Err(TokenError::Invalid));
    }

    #[test]
    fn keys_rotate_and_a_queue_token_keeps_its_string() {
        let before = QueueTokens::new(ring(OLD));
        let after = QueueTokens::new(ring(&format!("{NEW},{OLD}")));
        let (claims, string) = (queue(), before.sign(&queue(), "old"));
        assert!(after.verify(&string).is_ok());
        assert_eq!(after.signing_kid(), "new");
        assert_eq!(after.sign(&claims, "old"), before.sign(&claims, "old"));
    }

    #[test]
    fn weak_keys_are_refused() {
        assert!("old:short".parse::<KeyRing>().is_err());
        assert!("no-name".parse::<KeyRing>().is_err());
        assert!("".parse::<KeyRing>().is_err());
    }
}
