//! The transaction of a request that changes something, with its `Idempotency-Key`.
//!
//! Invariant: [`Once::finish`] is the only end of what has an effect. A success is recorded and committed with its effect;
//! a refusal rolls the effect back and is recorded by itself, unless asking again may give another answer (401, 403, 423,
//! 429, 5xx). A use case whose whole effect is one statement goes through [`Single`]: without a key it needs no
//! transaction, and a connection only when the statement is about to run.

use coupon_core::{
    Code, Error, Refusal,
    caller::Caller,
    db::{self, Db, Tx},
    idempotency::{self, Answer, Claim, MAX_KEY_LENGTH},
    job::signals::Signal,
};
use poem::{Request, RequestBody, Result};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaParamIn, MetaSchema, MetaSchemaRef, Registry},
    types::ToJSON,
};
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, Postgres, pool::PoolConnection};
use uuid::Uuid;

use crate::{app::App, problem::Problem, reply::Reply};

/// `#[oai(name = "Idempotency-Key")] key: IdempotencyKey` in a handler's arguments.
#[derive(Debug, Clone)]
pub struct IdempotencyKey {
    key: Option<String>,
    request: [u8; 32],
}

impl IdempotencyKey {
    /// Whether the request had one.
    pub fn is_given(&self) -> bool {
        self.key.is_some()
    }
}

impl<'a> ApiExtractor<'a> for IdempotencyKey {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::Parameter];
    const PARAM_IS_REQUIRED: bool = false;

    type ParamType = String;
    type ParamRawType = String;

    fn register(_registry: &mut Registry) {}

    fn param_in() -> Option<MetaParamIn> {
        Some(MetaParamIn::Header)
    }

    fn param_schema_ref() -> Option<MetaSchemaRef> {
        Some(MetaSchemaRef::Inline(Box::new(MetaSchema {
            description: Some(
                "Up to 255 printable characters; the same key with the same request gives the same answer, once done.",
            ),
            max_length: Some(MAX_KEY_LENGTH),
            min_length: Some(1),
            ..MetaSchema::new("string")
        })))
    }

    fn param_raw_type(&self) -> Option<&String> {
        self.key.as_ref()
    }

    async fn from_request(
        request: &'a Request,
        _body: &mut RequestBody,
        _options: ExtractParamOptions<String>,
    ) -> Result<Self> {
        let mut values = request.headers().get_all("idempotency-key").iter();
        let key = match (values.next(), values.next()) {
            (None, _) => None,
            (Some(value), None) => {
                let key = value.to_str().unwrap_or_default();
                let fit = (1..=MAX_KEY_LENGTH).contains(&key.len())
                    && key.bytes().all(|byte| (b' '..=b'~').contains(&byte));
                if !fit {
                    return Err(unfit().into());
                }
                Some(key.to_owned())
            }
            (Some(_), Some(_)) => return Err(unfit().into()),
        };
        let request = Sha256::new()
            .chain_update(request.method().as_str())
            .chain_update([0])
            .chain_update(
                request
                    .original_uri()
                    .path_and_query()
                    .map_or("", |target| target.as_str()),
            )
            .finalize()
            .into();
        Ok(Self { key, request })
    }
}

fn unfit() -> Problem {
    Problem::field(
        "header:Idempotency-Key",
        "invalid",
        "An Idempotency-Key is one value of 1 to 255 printable ASCII characters.",
    )
}

/// What was found of a request.
pub enum Begun<W = Once> {
    /// It is to be done now.
    Fresh(W),
    /// It was done before; this was the answer.
    Before(Answer),
}

/// An open transaction and the key that it answers for.
pub struct Once {
    app: App,
    db: Db,
    tx: Tx,
    claim: Option<Claim>,
}

/// The way of a use case whose whole effect is one statement.
pub enum Single {
    /// With a key: the statement and the key's record are one transaction.
    Keyed(Once),
    /// Without one the statement is a transaction of its own, two round trips less; its connection is taken when it is
    /// first asked for.
    Alone(Db, Option<PoolConnection<Postgres>>),
}

impl Single {
    /// Begins on `db`; `body` is the hash of the request's body.
    ///
    /// # Errors
    /// As [`Once::begin`].
    pub async fn begin(
        app: &App,
        db: &Db,
        caller: &Caller,
        key: IdempotencyKey,
        body: Option<&[u8; 32]>,
    ) -> Result<Begun<Self>, Problem> {
        if !key.is_given() {
            return Ok(Begun::Fresh(Self::Alone(db.clone(), None)));
        }
        Ok(match Once::begin(app, db, caller, key, body).await? {
            Begun::Fresh(once) => Begun::Fresh(Self::Keyed(once)),
            Begun::Before(answer) => Begun::Before(answer),
        })
    }

    /// Where the statement runs.
    ///
    /// # Errors
    /// When no connection can be had.
    pub async fn connection(&mut self) -> Result<&mut PgConnection, Error> {
        match self {
            Self::Keyed(once) => Ok(once.tx()),
            Self::Alone(db, taken) => {
                let connection = match taken.take() {
                    Some(connection) => connection,
                    None => db.pool().acquire().await?,
                };
                Ok(taken.insert(connection))
            }
        }
    }

    /// Ends it as [`Once::finish`] does.
    ///
    /// # Errors
    /// The refusal, as a problem.
    pub async fn finish<T: ToJSON, const STATUS: u16>(
        self,
        done: Result<T, Error>,
    ) -> Result<Reply<T, STATUS>, Problem> {
        match self {
            Self::Keyed(once) => once.finish(done, |_| None).await,
            Self::Alone(..) => Ok(Reply::new(&done?)),
        }
    }
}

impl Once {
    /// Begins on `db`; `body` is the hash of the request's body.
    ///
    /// # Errors
    /// `idempotency_in_progress`, `idempotency_key_reused`.
    pub async fn begin(
        app: &App,
        db: &Db,
        caller: &Caller,
        key: IdempotencyKey,
        body: Option<&[u8; 32]>,
    ) -> Result<Begun, Problem> {
        let claim = key.claim(caller, body);
        let mut tx = db.begin().await?;
        if let Some(claim) = &claim
            && let Some(answer) = idempotency::take(&mut tx, app.sealer(), claim).await?
        {
            return Ok(Begun::Before(answer));
        }
        Ok(Begun::Fresh(Self {
            app: app.clone(),
            db: db.clone(),
            tx,
            claim,
        }))
    }

    /// The transaction.
    pub fn tx(&mut self) -> &mut PgConnection {
        &mut self.tx
    }

    /// Ends it without an effect, so that something slow can be done before it is begun again.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn give_up(self) -> Result<(), Problem> {
        self.tx.rollback().await.map_err(Error::from)?;
        Ok(())
    }

    /// Ends it: commits a success with its record, or rolls back and records a refusal.
    ///
    /// # Errors
    /// The refusal, as a problem.
    pub async fn finish<T: ToJSON, const STATUS: u16>(
        mut self,
        done: Result<T, Error>,
        location: impl FnOnce(&T) -> Option<String>,
    ) -> Result<Reply<T, STATUS>, Problem> {
        let value = match done {
            Ok(value) => value,
            Err(error) => return Err(self.refuse(error).await),
        };
        let location = location(&value);
        let reply = Reply::new(&value).at(location.clone());
        let answer = Answer {
            status: STATUS,
            location,
            job_id: None,
            body: reply.bytes().to_vec(),
        };
        self.record(&answer).await?;
        db::commit(self.tx).await?;
        Ok(reply)
    }

    /// The same for an accepted job; workers are told.
    ///
    /// # Errors
    /// The refusal, as a problem.
    pub async fn finish_job(mut self, accepted: Result<Uuid, Error>) -> Result<Uuid, Problem> {
        let job_id = match accepted {
            Ok(job_id) => job_id,
            Err(error) => return Err(self.refuse(error).await),
        };
        let location = Some(format!("/v1/jobs/{job_id}"));
        self.record(&Answer {
            status: 202,
            location,
            job_id: Some(job_id),
            body: Vec::new(),
        })
        .await?;
        db::commit(self.tx).await?;
        self.app.signals().ring(Signal::Due);
        Ok(job_id)
    }

    async fn record(&mut self, answer: &Answer) -> Result<(), Problem> {
        if let Some(claim) = self.claim.take() {
            let app = self.app.clone();
            idempotency::record(self.tx(), app.sealer(), &claim, answer).await?;
        }
        Ok(())
    }

    /// Rolls back; records the refusal if the same request would be refused again.
    async fn refuse(self, error: Error) -> Problem {
        let Self { app, db, tx, claim } = self;
        // Awaited, not dropped: the key and the rows are held until it has happened, and the client may ask again as
        // soon as it has its answer. If it fails, the connection is closed and the server rolls back.
        let rolled_back = tx.rollback().await;
        let refusal = match (&claim, &error) {
            (Some(_), Error::Refused(refusal)) if is_kept(refusal) => refusal.clone(),
            _ => return error.into(),
        };
        let kept = async {
            rolled_back?;
            let claim = claim.as_ref().ok_or_else(Refusal::not_found)?;
            let mut tx = db.begin().await?;
            if idempotency::take(&mut tx, app.sealer(), claim).await?.is_none() {
                let status = crate::problem::status(refusal.code.kind()).as_u16();
                let body = refusal.detail.as_bytes();
                let body = [refusal.code.as_str().as_bytes(), b"\n", body].concat();
                idempotency::record(
                    &mut tx,
                    app.sealer(),
                    claim,
                    &Answer {
                        status,
                        location: None,
                        job_id: None,
                        body,
                    },
                )
                .await?;
                db::commit(tx).await?;
            }
            Ok::<(), Error>(())
        };
        match kept.await {
            Ok(()) => error.into(),
            // Without its record the refusal must not be given: a copy might be answered otherwise.
            Err(failed) => failed.into(),
        }
    }
}

impl IdempotencyKey {
    fn claim(self, caller: &Caller, body: Option<&[u8; 32]>) -> Option<Claim> {
        let key = self.key?;
        let mut hash = Sha256::new().chain_update(self.request);
        hash.update(body.map_or(&[][..], |body| &body[..]));
        Some(Claim {
            caller_id: caller.id,
            key,
            request_hash: hash.finalize().into(),
        })
    }
}

fn is_kept(refusal: &Refusal) -> bool {
    !matches!(
        crate::problem::status(refusal.code.kind()).as_u16(),
        401 | 403 | 423 | 429 | 500..
    ) && refusal.code != Code::IdempotencyInProgress
}

/// A stored answer as this operation gives it: the same body, or the same refusal.
///
/// # Errors
/// The stored refusal.
pub fn again<T: ToJSON, const STATUS: u16>(answer: Answer) -> Result<Reply<T, STATUS>, Problem> {
    if answer.status >= 400 {
        return Err(stored_refusal(&answer.body));
    }
    Ok(Reply::from_bytes(answer.body).at(answer.location).replayed())
}

/// A refusal from its record: its code, a line's end, its sentence.
pub fn stored_refusal(body: &[u8]) -> Problem {
    let text = String::from_utf8_lossy(body);
    let (code, detail) = text.split_once('\n').unwrap_or(("", ""));
    let code = Code::ALL
        .iter()
        .copied()
        .find(|known| known.as_str() == code)
        .unwrap_or(Code::Internal);
    Problem::new(code, detail.to_owned()).header(
        crate::reply::REPLAYED,
        poem::http::HeaderValue::from_static("true"),
    )
}
