//! Secrets that prove who calls: the signing key, what is derived from it, access tokens, and random tokens.
//!
//! Invariant: every purpose has a key of its own, derived with HKDF-SHA256 (RFC 5869), so that what is signed for
//! one can never pass for another. Access tokens are JWT (RFC 7519) signed with HS256 and nothing else. Whether one
//! has expired is asked of the database's clock, like everything about time; the process's own clock may be wrong.
//! A random token holds 256 bits and only its SHA-256 is ever stored.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit, Mac};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rand::{TryRng, rngs::SysRng};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::Role;

/// How long an access token is valid, in seconds.
pub const ACCESS_SECONDS: i64 = 15 * 60;

/// The fewest bytes of a secret.
const SECRET_MIN: usize = 32;

/// The fewest different bytes of a secret: 32 random ones practically never have fewer, nor 32 hexadecimal digits.
const SECRET_DISTINCT_MIN: usize = 8;

const ISSUER: &str = "couponbook";
const AUDIENCE: &str = "couponbook-api";
/// RFC 9068: tells access tokens from other JWTs.
const TOKEN_TYPE: &str = "at+jwt";

/// Why a secret is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the token secret is missing or too weak: it needs at least 32 bytes that are not a repetition; \
     `openssl rand -base64 48` makes one"
)]
pub struct WeakSecret;

/// The keys that follow from the one secret.
#[derive(Clone)]
pub struct TokenKeys {
    root: [u8; 32],
    sign: EncodingKey,
    verify: DecodingKey,
}

impl fmt::Debug for TokenKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKeys(…)")
    }
}

/// What an access token says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessClaims {
    /// Whose it is.
    #[serde(rename = "sub")]
    pub user_id: Uuid,
    /// The log-in that it came from: the family of its refresh tokens.
    #[serde(rename = "sid")]
    pub session_id: Uuid,
    /// The role when it was issued. For clients; the service asks the account.
    pub role: Role,
    /// When it was issued, seconds since 1970, by the database's clock.
    pub iat: i64,
    /// When it ends, likewise.
    pub exp: i64,
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    iss: String,
    aud: String,
    #[serde(flatten)]
    claims: AccessClaims,
}

/// Why an access token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadToken {
    /// It was good once.
    Expired,
    /// Anything else; strangers are not told what.
    NotValid,
}

impl TokenKeys {
    /// From the secret of the installation.
    ///
    /// # Errors
    /// When it is shorter than 32 bytes or plainly not random.
    pub fn new(secret: &[u8]) -> Result<Self, WeakSecret> {
        let mut distinct = secret.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        if secret.len() < SECRET_MIN || distinct.len() < SECRET_DISTINCT_MIN {
            return Err(WeakSecret);
        }
        let root = hmac(b"couponbook", &[secret]); // HKDF-Extract with a fixed salt
        let jwt = expand(&root, b"jwt");
        Ok(Self {
            root,
            sign: EncodingKey::from_secret(&jwt),
            verify: DecodingKey::from_secret(&jwt),
        })
    }

    /// A key for `purpose` ("idempotency-seal", "cursor", …); the same secret always gives the same.
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        expand(&self.root, purpose.as_bytes())
    }

    /// An access token for `user_id`, valid for [`ACCESS_SECONDS`] from `now`, the database's time.
    pub fn issue(&self, user_id: Uuid, session_id: Uuid, role: Role, now: DateTime<Utc>) -> String {
        let iat = now.timestamp();
        let envelope = Envelope {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            claims: AccessClaims {
                user_id,
                session_id,
                role,
                iat,
                exp: iat + ACCESS_SECONDS,
            },
        };
        let mut header = Header::new(Algorithm::HS256);
        header.typ = Some(TOKEN_TYPE.to_owned());
        jsonwebtoken::encode(&header, &envelope, &self.sign).expect("plain claims and a key made for HS256")
    }

    /// What a token says, if it is ours and `now`, the database's time, is before its end.
    ///
    /// # Errors
    /// [`BadToken`].
    pub fn verify(&self, token: &str, now: DateTime<Utc>) -> Result<AccessClaims, BadToken> {
        let claims = self.decode(token)?;
        claims.check_expiry(now)?;
        Ok(claims)
    }

    /// The log-in of a token that has been authenticated before.
    pub fn session_of(&self, token: &str) -> Option<Uuid> {
        self.decode(token).ok().map(|claims| claims.session_id)
    }

    /// Everything but the expiry.
    pub(super) fn decode(&self, token: &str) -> Result<AccessClaims, BadToken> {
        let mut rules = Validation::new(Algorithm::HS256); // and no other: not `none`, not a public key's
        rules.set_issuer(&[ISSUER]);
        rules.set_audience(&[AUDIENCE]);
        rules.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        rules.validate_exp = false; // it would ask the process's clock
        let data =
            jsonwebtoken::decode::<Envelope>(token, &self.verify, &rules).map_err(|_| BadToken::NotValid)?;
        if data.header.typ.as_deref() != Some(TOKEN_TYPE) {
            return Err(BadToken::NotValid);
        }
        Ok(data.claims.claims)
    }
}

impl AccessClaims {
    /// No leeway: the same clock wrote the end and is asked now.
    pub(super) fn check_expiry(&self, now: DateTime<Utc>) -> Result<(), BadToken> {
        if now.timestamp() < self.exp {
            Ok(())
        } else {
            Err(BadToken::Expired)
        }
    }
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// HKDF-Expand (RFC 5869, 2.3) for one block, which is as long as the hash.
fn expand(root: &[u8], info: &[u8]) -> [u8; 32] {
    hmac(root, &[info, &[1]])
}

/// `prefix` and 256 random bits as base64url, 43 characters.
pub(super) fn random(prefix: &str) -> String {
    let mut bytes = [0; 32];
    SysRng
        .try_fill_bytes(&mut bytes)
        .expect("the operating system has randomness");
    format!("{prefix}{}", URL_SAFE_NO_PAD.encode(bytes))
}

/// Whether `text` looks like a token that [`random`] made, so that anything else need not be looked up.
pub(super) fn looks_random(prefix: &str, text: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|rest| {
        rest.len() == 43
            && rest
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    })
}

/// What is stored of a random token.
pub(super) fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    fn keys() -> TokenKeys {
        TokenKeys::new(SECRET).expect("a good secret")
    }

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).expect("a time")
    }

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal"))
            .collect()
    }

    #[test]
    fn derivation_is_hkdf_sha256() {
        // RFC 5869, test case 1; the first 32 bytes of its output.
        let root = hmac(&bytes("000102030405060708090a0b0c"), &[&[0x0b; 22]]);
        assert_eq!(
            root.to_vec(),
            bytes("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5")
        );
        assert_eq!(
            expand(&root, &bytes("f0f1f2f3f4f5f6f7f8f9")).to_vec(),
            bytes("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf")
        );
        assert_ne!(keys().derive("cursor"), keys().derive("jwt"));
    }

    #[test]
    fn weak_secrets_are_refused_and_good_ones_not_shown() {
        assert!(TokenKeys::new(b"short").is_err());
        assert!(TokenKeys::new(&[7; 64]).is_err());
        assert!(TokenKeys::new(&b"abcd".repeat(20)).is_err());
        assert_eq!(format!("{:?}", keys()), "TokenKeys(…)");
    }

    #[test]
    fn a_token_is_good_until_its_end_and_only_with_its_key() {
        let (user, session) = (Uuid::now_v7(), Uuid::now_v7());
        let token = keys().issue(user, session, Role::Admin, now());
        let claims = keys().verify(&token, now()).expect("a good token");
        assert_eq!((claims.user_id, claims.session_id), (user, session));
        assert_eq!(keys().session_of(&token), Some(session));
        let end = now() + chrono::TimeDelta::seconds(ACCESS_SECONDS);
        assert_eq!(keys().verify(&token, end), Err(BadToken::Expired));
        let other = TokenKeys::new(b"another secret of more than 32 bytes").expect("a good secret");
        assert_eq!(other.verify(&token, now()), Err(BadToken::NotValid));
        for at in 0..token.len() {
            let mut forged = token.clone().into_bytes();
            forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).expect("ASCII");
            assert_eq!(
                keys().verify(&forged, now()),
                Err(BadToken::NotValid),
                "byte {at}"
            );
        }
    }

    #[test]
    fn other_algorithms_and_other_kinds_of_token_are_refused() {
        let claims = keys().issue(Uuid::now_v7(), Uuid::now_v7(), Role::Admin, now());
        let payload = claims.split('.').nth(1).expect("three parts");
        let jwt_key = expand(&keys().root, b"jwt");
        for header in [
            r#"{"alg":"none","typ":"at+jwt"}"#,
            r#"{"alg":"RS256","typ":"at+jwt"}"#,
            r#"{"alg":"HS512","typ":"at+jwt"}"#,
            r#"{"alg":"HS256","typ":"JWT"}"#,
            r#"{"alg":"HS256"}"#,
        ] {
            let signed = format!("{}.{payload}", URL_SAFE_NO_PAD.encode(header));
            let signature = URL_SAFE_NO_PAD.encode(hmac(&jwt_key, &[signed.as_bytes()]));
            for token in [format!("{signed}.{signature}"), format!("{signed}.")] {
                assert_eq!(keys().verify(&token, now()), Err(BadToken::NotValid), "{header}");
            }
        }
        // The same way of signing makes a good token of a good header: the refusals above are not by accident.
        let signed = format!(
            "{}.{payload}",
            URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"at+jwt"}"#)
        );
        let signature = URL_SAFE_NO_PAD.encode(hmac(&jwt_key, &[signed.as_bytes()]));
        assert!(keys().verify(&format!("{signed}.{signature}"), now()).is_ok());
        for junk in ["", ".", "..", "a.b.c", "cb_x"] {
            assert_eq!(keys().verify(junk, now()), Err(BadToken::NotValid));
        }
    }

    #[test]
    fn random_tokens_are_known_by_their_looks() {
        let token = random("cb_");
        assert!(looks_random("cb_", &token));
        assert!(!looks_random("cbr_", &token));
        assert!(!looks_random("cb_", &token[..45]));
        assert_ne!(token, random("cb_"));
    }
}
