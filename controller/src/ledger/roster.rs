//! Who is enrolled, with which tokens, and who is not believed any more.
//!
//! These rows are few and change seldom, so each change has a transaction of its own and no part in the batches of runs. The
//! decision (`judge`) is a function over the rows it concerns.

use std::path::Path;

use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Connection as _, Row as _};

use sally_common::id::Digest;
use sally_common::key::PublicKey;
use sally_common::name::{Agent, User, Zone};
use sally_common::wire::enrol::NotEnrolled;

use super::Ledger;
use super::command::{Answer, Command};
use super::error::{LedgerError, explain};
use super::row::parse;

/// Tokens on record at one time, used or not.
pub const TOKENS_KEPT: i64 = 10_000;

/// A token of enrolment, as far as it is known here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// Its id.
    pub id: String,
    /// The zone.
    pub zone: Zone,
    /// The digest of its public key; the token itself is known to nobody here.
    pub key_digest: Digest,
    /// Who made it.
    pub by: User,
    /// When, Unix milliseconds.
    pub created_ms: i64,
    /// When it ends.
    pub expires_ms: i64,
    /// How many hosts it is for.
    pub uses: u32,
    /// How many it has enrolled.
    pub used: u32,
}

/// A host that asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asking {
    /// The token's id.
    pub token: String,
    /// The digest of the key that signed the request.
    pub key_digest: Digest,
    /// Who it wants to be.
    pub member: EnrolledRow,
    /// Whether the name is another's by the list of the configuration.
    pub is_taken: bool,
    /// Now, Unix milliseconds.
    pub at_ms: i64,
}

/// An agent that was enrolled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrolledRow {
    /// Its zone.
    pub zone: Zone,
    /// Its name.
    pub agent: Agent,
    /// Its key.
    pub key: PublicKey,
    /// The public key of its user at the broker.
    pub user: String,
}

/// An agent that is not believed any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevokedRow {
    /// Its zone.
    pub zone: Zone,
    /// Its name.
    pub agent: Agent,
    /// Its key.
    pub key: PublicKey,
    /// The public key of its user at the broker, if that was known.
    pub user: Option<String>,
    /// When, Unix milliseconds.
    pub at_ms: i64,
    /// By whom.
    pub by: User,
}

/// A change that is asked for.
pub(super) enum Roster {
    Token(TokenRow),
    Enrol(Asking),
    Revoke(RevokedRow),
    ForgetTokens { before_ms: i64 },
}

/// What became of one.
pub(super) enum RosterAnswer {
    Done,
    Enrolled(Result<bool, NotEnrolled>),
}

/// Whether a host may be enrolled: `true` now, `false` if it was with this very token, key and name. `named` is who has
/// the name, `revoked` whether the key is not believed any more.
pub(super) fn judge(
    asking: &Asking,
    token: Option<&TokenRow>,
    named: Option<&EnrolledRow>,
    revoked: bool,
) -> Result<bool, NotEnrolled> {
    let token =
        token.filter(|token| token.key_digest == asking.key_digest).ok_or(NotEnrolled::UnknownToken)?;
    if token.zone != asking.member.zone {
        return Err(NotEnrolled::OtherZone);
    }
    if revoked {
        return Err(NotEnrolled::Revoked);
    }
    // The answer was lost on its way: the same again, also when the token is used up or has ended meanwhile.
    if named == Some(&asking.member) {
        return Ok(false);
    }
    if asking.at_ms >= token.expires_ms {
        return Err(NotEnrolled::Expired);
    }
    if token.used >= token.uses {
        return Err(NotEnrolled::UsedUp);
    }
    if named.is_some() || asking.is_taken {
        return Err(NotEnrolled::NameTaken);
    }
    Ok(true)
}

type Db = SqliteConnection;

/// Makes one change in a transaction of its own.
pub(super) async fn apply(path: &Path, db: &mut Db, change: &Roster) -> Result<RosterAnswer, LedgerError> {
    let fail = |e: sqlx::Error| explain(path, &e);
    let mut tx = db.begin().await.map_err(fail)?;
    let answer = match change {
        Roster::Token(token) => {
            let count: i64 = sqlx::query_scalar("SELECT count(*) FROM enrol_tokens")
                .fetch_one(&mut *tx)
                .await
                .map_err(fail)?;
            if count >= TOKENS_KEPT {
                return Err(LedgerError::Input(format!(
                    "{count} tokens of enrolment are on record, which is the most; expired ones go after a day"
                )));
            }
            add_token(&mut tx, token).await.map_err(fail)?;
            RosterAnswer::Done
        }
        Roster::Enrol(asking) => RosterAnswer::Enrolled(enrol(&mut tx, asking).await.map_err(fail)?),
        Roster::Revoke(revoked) => {
            revoke(&mut tx, revoked).await.map_err(fail)?;
            RosterAnswer::Done
        }
        Roster::ForgetTokens { before_ms } => {
            sqlx::query("DELETE FROM enrol_tokens WHERE expires_ms < ?")
                .bind(before_ms)
                .execute(&mut *tx)
                .await
                .map_err(fail)?;
            RosterAnswer::Done
        }
    };
    tx.commit().await.map_err(fail)?;
    Ok(answer)
}

async fn add_token(db: &mut Db, token: &TokenRow) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO enrol_tokens (id, zone, key_digest, created_by, created_ms, expires_ms, uses, used)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&token.id)
    .bind(token.zone.as_str())
    .bind(token.key_digest.to_string())
    .bind(token.by.as_str())
    .bind(token.created_ms)
    .bind(token.expires_ms)
    .bind(i64::from(token.uses))
    .bind(i64::from(token.used))
    .execute(db)
    .await
    .map(|_| ())
}

async fn enrol(db: &mut Db, asking: &Asking) -> Result<Result<bool, NotEnrolled>, sqlx::Error> {
    let EnrolledRow { zone, agent, key, user } = &asking.member;
    let token = sqlx::query("SELECT * FROM enrol_tokens WHERE id = ?").bind(&asking.token);
    let token = token.fetch_optional(&mut *db).await?.map(|row| token_of(&row)).transpose()?;
    let named =
        sqlx::query("SELECT zone, name, agent_key, user_key FROM enrolled WHERE zone = ? AND name = ?");
    let named = named.bind(zone.as_str()).bind(agent.as_str()).fetch_optional(&mut *db).await?;
    let named = named.map(|row| enrolled_of(&row)).transpose()?;
    let revoked: i64 = sqlx::query_scalar("SELECT count(*) FROM revoked WHERE agent_key = ? OR user_key = ?")
        .bind(key.to_string())
        .bind(user)
        .fetch_one(&mut *db)
        .await?;
    let verdict = judge(asking, token.as_ref(), named.as_ref(), revoked > 0);
    if verdict == Ok(true) {
        sqlx::query("UPDATE enrol_tokens SET used = used + 1 WHERE id = ?")
            .bind(&asking.token)
            .execute(&mut *db)
            .await?;
        let row =
            "INSERT INTO enrolled (zone, name, agent_key, user_key, token, at_ms) VALUES (?, ?, ?, ?, ?, ?)";
        sqlx::query(row)
            .bind(zone.as_str())
            .bind(agent.as_str())
            .bind(key.to_string())
            .bind(user)
            .bind(&asking.token)
            .bind(asking.at_ms)
            .execute(&mut *db)
            .await?;
    }
    Ok(verdict)
}

async fn revoke(db: &mut Db, row: &RevokedRow) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM enrolled WHERE zone = ? AND name = ? AND agent_key = ?")
        .bind(row.zone.as_str())
        .bind(row.agent.as_str())
        .bind(row.key.to_string())
        .execute(&mut *db)
        .await?;
    sqlx::query(
        "INSERT OR REPLACE INTO revoked (zone, name, agent_key, user_key, at_ms, revoked_by) VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(row.zone.as_str())
    .bind(row.agent.as_str())
    .bind(row.key.to_string())
    .bind(row.user.as_deref())
    .bind(row.at_ms)
    .bind(row.by.as_str())
    .execute(db)
    .await
    .map(|_| ())
}

fn token_of(row: &SqliteRow) -> Result<TokenRow, sqlx::Error> {
    let count = |name: &str| Ok::<_, sqlx::Error>(u32::try_from(row.try_get::<i64, _>(name)?).unwrap_or(0));
    Ok(TokenRow {
        id: row.try_get("id")?,
        zone: parse(row, 1)?,
        key_digest: parse(row, 2)?,
        by: parse(row, 3)?,
        created_ms: row.try_get("created_ms")?,
        expires_ms: row.try_get("expires_ms")?,
        uses: count("uses")?,
        used: count("used")?,
    })
}

fn enrolled_of(row: &SqliteRow) -> Result<EnrolledRow, sqlx::Error> {
    Ok(EnrolledRow {
        zone: parse(row, 0)?,
        agent: parse(row, 1)?,
        key: parse(row, 2)?,
        user: row.try_get(3)?,
    })
}

impl Ledger {
    /// Records a token of enrolment.
    ///
    /// # Errors
    /// Too many are on record.
    pub async fn add_token(&self, token: TokenRow) -> Result<(), LedgerError> {
        self.roster(Roster::Token(token)).await.map(|_| ())
    }

    /// Enrols a host, or says why not. `false`: it was before, with the same token, keys and name.
    pub async fn enrol(&self, asking: Asking) -> Result<Result<bool, NotEnrolled>, LedgerError> {
        match self.roster(Roster::Enrol(asking)).await? {
            RosterAnswer::Enrolled(verdict) => Ok(verdict),
            RosterAnswer::Done => Err(LedgerError::Closed),
        }
    }

    /// Records that an agent is not believed any more. Its name is free again.
    pub async fn revoke(&self, row: RevokedRow) -> Result<(), LedgerError> {
        self.roster(Roster::Revoke(row)).await.map(|_| ())
    }

    /// Forgets tokens that ended before this time.
    pub async fn forget_tokens(&self, before_ms: i64) -> Result<(), LedgerError> {
        self.roster(Roster::ForgetTokens { before_ms }).await.map(|_| ())
    }

    /// Everybody who was enrolled and not revoked.
    pub async fn enrolled(&self) -> Result<Vec<EnrolledRow>, LedgerError> {
        let rows = sqlx::query("SELECT zone, name, agent_key, user_key FROM enrolled")
            .fetch_all(self.readers())
            .await;
        let rows = rows.and_then(|rows| rows.iter().map(enrolled_of).collect());
        rows.map_err(|e| explain(self.path(), &e))
    }

    /// Everybody who was revoked.
    pub async fn revoked(&self) -> Result<Vec<RevokedRow>, LedgerError> {
        let rows = sqlx::query("SELECT zone, name, agent_key, user_key, at_ms, revoked_by FROM revoked");
        let read = |row: &SqliteRow| {
            Ok(RevokedRow {
                zone: parse(row, 0)?,
                agent: parse(row, 1)?,
                key: parse(row, 2)?,
                user: row.try_get(3)?,
                at_ms: row.try_get(4)?,
                by: parse(row, 5)?,
            })
        };
        let rows = rows.fetch_all(self.readers()).await.and_then(|rows| rows.iter().map(read).collect());
        rows.map_err(|e| explain(self.path(), &e))
    }

    async fn roster(&self, change: Roster) -> Result<RosterAnswer, LedgerError> {
        match self.ask(Command::Roster(Box::new(change))).await? {
            Answer::Roster(answer) => Ok(answer),
            _ => Err(LedgerError::Closed),
        }
    }
}
