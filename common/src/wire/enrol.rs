//! How a host becomes an agent: a token, a request that proves it, and the papers that come back.
//!
//! The token is made by a caller and carried by people; the controller knows the digest of its public key and never the token.
//! The host makes its own keys and sends their public halves. Nothing here connects into a zone: the host asks on one subject
//! and hears on one, with a credential that allows these two and ends with the token.

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};

use super::{Envelope, Kind, Refusal, VERSION, read, to_bytes};
use crate::id::{Digest, Nonce};
use crate::key::{PublicKey, Signature, SigningKey};
use crate::name::{Agent, Zone};
use crate::trust::TrustList;

/// What a token's text begins with.
const MARK: &str = "sally-enroll-";
/// Characters of the digest at its end, so that a character lost on the way is noticed.
const CHECK: usize = 12;
/// The longest token; an authority's certificate is the largest part.
const TOKEN_MAX: usize = 32 * 1024;
/// The longest that a token may hold.
pub const TTL_MAX_MS: i64 = 30 * 24 * 3600 * 1000;

/// What a host needs to be enrolled. A secret.
#[derive(Clone, Serialize, Deserialize)]
pub struct Token {
    /// Wire version.
    pub v: u32,
    /// Its id, a part of the two subjects.
    pub id: Nonce,
    /// The zone it is for.
    pub zone: Zone,
    /// The broker.
    pub url: String,
    /// First token of every subject.
    pub prefix: String,
    /// TLS before the broker's greeting.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tls_first: bool,
    /// Certificates to trust besides the system's, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// Controllers whose answer is believed.
    pub controllers: Vec<PublicKey>,
    /// Unix milliseconds after which it is worthless.
    pub expires_ms: i64,
    /// The seed of the key that proves it.
    pub key: String,
    /// The broker's JWT for the two subjects.
    pub jwt: String,
    /// The seed that belongs to it.
    pub user: String,
}

/// A text is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// It does not look like one.
    #[error("this is no token of enrolment: one begins with {MARK}")]
    Form,
    /// A character was lost or changed.
    #[error("the token is damaged: copy it again, as a whole")]
    Damaged,
    /// It is of a newer version.
    #[error("the token is of a version that this program does not know")]
    Version,
}

impl Token {
    /// The text that people carry, one line.
    pub fn text(&self) -> String {
        let body = BASE64URL_NOPAD.encode(&to_bytes(self));
        let check = Digest::of(body.as_bytes()).to_string();
        format!("{MARK}{body}.{}", &check[..CHECK])
    }

    /// Reads it back.
    ///
    /// # Errors
    /// [`BadToken`]. What it says is not proved by that.
    pub fn parse(text: &str) -> Result<Self, BadToken> {
        let text = text.trim();
        let rest = text.strip_prefix(MARK).filter(|_| text.len() <= TOKEN_MAX).ok_or(BadToken::Form)?;
        let (body, check) = rest.split_once('.').ok_or(BadToken::Damaged)?;
        if Digest::of(body.as_bytes()).to_string()[..CHECK] != *check {
            return Err(BadToken::Damaged);
        }
        let json = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| BadToken::Damaged)?;
        read(&json).map_err(|refusal| match refusal {
            Refusal::UnsupportedVersion => BadToken::Version,
            _ => BadToken::Damaged,
        })
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("id", &self.id).field("zone", &self.zone).finish_non_exhaustive()
    }
}

/// Who a host wants to be. It signs this with the key that will be its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Wire version.
    pub v: u32,
    /// The token's id, so that it counts with this token only.
    pub token: Nonce,
    /// The zone.
    pub zone: Zone,
    /// The name, for life.
    pub agent: Agent,
    /// The key that will sign what the agent says.
    pub key: PublicKey,
    /// The public key of the broker's user that it will be.
    pub user: String,
}

/// A host asks to be enrolled. Signed by the token's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrol {
    /// Wire version.
    pub v: u32,
    /// Ties the answer to it.
    pub nonce: Nonce,
    /// The exact bytes of an [`Identity`].
    pub identity: String,
    /// The signature over them, by the key that they name.
    pub signature: Signature,
}

impl Enrol {
    /// Writes and signs a request.
    pub fn seal(token: &SigningKey, own: &SigningKey, nonce: Nonce, identity: &Identity) -> Envelope {
        let bytes = to_bytes(identity);
        let signature = own.sign(Kind::Identity, &bytes);
        let identity = String::from_utf8_lossy(&bytes).into_owned();
        Envelope::seal(Kind::Enrol, token, &Enrol { v: VERSION, nonce, identity, signature })
    }

    /// Reads the identity and checks that its key signed it.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn identity(&self) -> Result<Identity, Refusal> {
        let identity: Identity = read(self.identity.as_bytes())?;
        match identity.key.verify(Kind::Identity, self.identity.as_bytes(), &self.signature) {
            true => Ok(identity),
            false => Err(Refusal::BadSignature),
        }
    }
}

/// The answer. Signed by a controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// Wire version.
    pub v: u32,
    /// Of the request.
    pub nonce: Nonce,
    /// What it is.
    pub outcome: Outcome,
}

/// Whether a host is an agent now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is, and this is what it needs.
    Papers(Box<Papers>),
    /// It is not.
    Refused(NotEnrolled),
}

/// What an agent gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Papers {
    /// Its zone.
    pub zone: Zone,
    /// Its name.
    pub agent: Agent,
    /// The broker's JWT for its user key: its own subjects and no others.
    pub jwt: String,
    /// Whom it believes from now on.
    pub trust: TrustList,
}

/// Why a host is not enrolled. The word is stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case", from = "String")]
#[expect(missing_docs, reason = "each variant's message is its documentation")]
pub enum NotEnrolled {
    #[error("no such token is known here, or it is not the one that was made: have another one made")]
    UnknownToken,
    #[error("the token has expired: have another one made")]
    Expired,
    #[error("the token was used as often as it may be: have another one made")]
    UsedUp,
    #[error("the token is for another zone")]
    OtherZone,
    #[error(
        "an agent of this name is enrolled in the zone: choose another name with --name, or have that one revoked first"
    )]
    NameTaken,
    #[error("the agent with this key was revoked: move agent.seed away, and a new key is made")]
    Revoked,
    #[error("the controller cannot issue credentials now; its log says why")]
    CannotIssue,
    /// A word of a newer program. Never written.
    #[error("for a reason that this program does not know")]
    Other,
}

impl NotEnrolled {
    const ALL: [NotEnrolled; 7] = [
        NotEnrolled::UnknownToken,
        NotEnrolled::Expired,
        NotEnrolled::UsedUp,
        NotEnrolled::OtherZone,
        NotEnrolled::NameTaken,
        NotEnrolled::Revoked,
        NotEnrolled::CannotIssue,
    ];

    /// The stable word.
    pub fn code(self) -> String {
        serde_json::to_value(self).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

impl From<String> for NotEnrolled {
    fn from(word: String) -> Self {
        NotEnrolled::ALL.into_iter().find(|reason| reason.code() == word).unwrap_or(NotEnrolled::Other)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is the test's failure")]
mod tests {
    use super::*;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_secret([n; 32])
    }

    fn token() -> Token {
        Token {
            v: VERSION,
            id: Nonce::from_bytes([7; 16]),
            zone: Zone::new("dmz").unwrap(),
            url: "tls://broker:4222".into(),
            prefix: "sally".into(),
            tls_first: true,
            ca: None,
            controllers: vec![key(2).public().clone()],
            expires_ms: 9,
            key: key(5).seed(),
            jwt: "a.b.c".into(),
            user: key(6).seed(),
        }
    }

    #[test]
    fn a_token_survives_people_and_no_changed_character_does() {
        let text = token().text();
        assert_eq!(to_bytes(&Token::parse(&format!("  {text}\n")).unwrap()), to_bytes(&token()));
        assert_eq!(Token::parse("hello").err(), Some(BadToken::Form));
        assert_eq!(Token::parse("").err(), Some(BadToken::Form));
        for at in MARK.len()..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(Token::parse(&changed).is_err(), "{at}");
            assert!(Token::parse(&text[..at]).is_err(), "cut at {at}");
        }
        let newer = Token { v: 2, ..token() }.text();
        assert_eq!(Token::parse(&newer).err(), Some(BadToken::Version));
        assert!(!format!("{:?}", token()).contains(&key(5).seed()));
    }

    #[test]
    fn an_identity_is_believed_from_its_own_key_only() {
        let identity = Identity {
            v: VERSION,
            token: Nonce::from_bytes([7; 16]),
            zone: Zone::new("dmz").unwrap(),
            agent: Agent::new("web-1").unwrap(),
            key: key(3).public().clone(),
            user: "U".into(),
        };
        let sealed = |own: &SigningKey| {
            let envelope = Enrol::seal(&key(5), own, Nonce::from_bytes([8; 16]), &identity);
            read::<Enrol>(&envelope.body).unwrap()
        };
        assert_eq!(sealed(&key(3)).identity(), Ok(identity.clone()));
        assert_eq!(sealed(&key(4)).identity(), Err(Refusal::BadSignature), "somebody else's key");
        let mut changed = sealed(&key(3));
        changed.identity = changed.identity.replace("web-1", "web-2");
        assert_eq!(changed.identity(), Err(Refusal::BadSignature));
    }

    #[test]
    fn reasons_have_words() {
        for reason in NotEnrolled::ALL {
            assert_eq!(NotEnrolled::from(reason.code()), reason);
        }
        assert_eq!(NotEnrolled::from("newer".to_owned()), NotEnrolled::Other);
    }
}
