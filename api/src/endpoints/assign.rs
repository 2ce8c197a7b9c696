//! Assignments: drawn at random or of a given code, accepted as jobs.

use coupon_core::{
    caller::{Caller, Scope},
    coupon::{
        accept::{self, Assignment},
        batch::{self, Item},
        locate,
    },
    job::payload::Wanted,
};
use poem_openapi::{
    Object, OpenApi,
    param::{Header, Path, Query},
};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    Lookup, Tag,
    job_reply::{self, JobReply, Waiting},
    origin, path_code,
};
use crate::{
    Body, Problem, RequestId,
    app::App,
    auth::Auth,
    csv::JsonOrCsv,
    once::{Begun, IdempotencyKey, Once},
    payload::read_to_end,
};

/// Coupons to be drawn for a user.
#[derive(Debug, Object)]
pub struct AssignRequest {
    /// From which book.
    book_id: Uuid,
    /// For whom; a user may leave it out and gets them itself.
    user_id: Option<Uuid>,
    /// How many, all or none.
    #[oai(validator(minimum(value = "1"), maximum(value = "1000")), default = "one")]
    count: u32,
}

fn one() -> u32 {
    1
}

/// Coupons of one book for many users.
#[derive(Debug, Object)]
pub struct AssignBatchRequest {
    /// From which book.
    book_id: Uuid,
    /// Who gets how many; all or none for each.
    #[oai(validator(min_items = 1, max_items = 10000))]
    items: Vec<AssignItem>,
}

/// One user of a batch.
#[derive(Debug, Object)]
pub struct AssignItem {
    /// Who.
    user_id: Uuid,
    /// How many.
    #[oai(validator(minimum(value = "1"), maximum(value = "1000")), default = "one")]
    count: u32,
}

/// The most bytes of a batch as CSV.
const MAX_CSV_BYTES: usize = 2 * 1024 * 1024;

/// A given code for a user.
#[derive(Debug, Object)]
pub struct AssignCodeRequest {
    /// For whom; a user may leave it out and gets it itself.
    user_id: Option<Uuid>,
    /// In which book, if several hold the code.
    book_id: Option<Uuid>,
}

/// The endpoints of assignments.
pub struct Assign {
    /// What handlers share.
    pub app: App,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Coupons")]
impl Assign {
    /// Assign coupons drawn at random: a job. A user assigns only to itself, in a book of self-service.
    #[oai(path = "/coupons/assign", method = "post")]
    async fn assign(
        &self,
        auth: Auth,
        id: RequestId,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        #[oai(name = "Prefer")] prefer: Header<Option<String>>,
        body: Body<AssignRequest>,
    ) -> Result<JobReply, Problem> {
        let user_id = accept::beneficiary(&auth, body.user_id)?;
        self.app.depth().admit()?;
        let wanted = Wanted::Draw(body.count);
        let assignment = Assignment::new(&auth, body.book_id, user_id, wanted, origin(&auth, &id));
        if !key.is_given() {
            // The place among the waiters comes before the job, so that its end cannot fall in between.
            let waiting = Waiting::enter(&self.app, assignment.job_id, prefer.0.as_deref());
            let job_id = assignment.job_id;
            self.app.intake().accept(assignment).await?;
            return waiting.reply(&self.app, &auth, job_id).await;
        }
        let (hash, prefer) = (Some(body.hash()), prefer.0.as_deref());
        job_reply::accepted(&self.app, &auth, key, hash, prefer, async |tx| {
            accept::accept(tx, assignment).await
        })
        .await
    }

    /// Assign a given code: a job.
    #[oai(path = "/coupons/assign/:code", method = "post")]
    async fn assign_code(
        &self,
        auth: Auth,
        id: RequestId,
        code: Path<String>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        #[oai(name = "Prefer")] prefer: Header<Option<String>>,
        body: Body<AssignCodeRequest>,
    ) -> Result<JobReply, Problem> {
        let user_id = accept::beneficiary(&auth, body.user_id)?;
        self.app.depth().admit()?;
        let lookup = Lookup::begin(&self.app, &auth, &code.0, body.book_id).await?;
        let mut once = match Once::begin(&self.app, self.app.db(), &auth, key, Some(body.hash())).await? {
            Begun::Fresh(once) => once,
            Begun::Before(answer) => {
                return job_reply::replay(&self.app, &auth, answer, prefer.0.as_deref()).await;
            }
        };
        let accepted = accept_code(&mut once, &auth, &code.0, body.book_id, user_id, &id).await;
        let job_id = lookup.end(once.finish_job(accepted).await).await?;
        job_reply::reply(&self.app, &auth, job_id, prefer.0.as_deref(), false).await
    }

    /// Assign coupons of one book to many users: a job, with an outcome for every item. As JSON, or as CSV of
    /// `user_email,count` with `?book_id=`.
    #[oai(path = "/coupons/assign-batch", method = "post")]
    async fn assign_batch(
        &self,
        auth: Auth,
        id: RequestId,
        book_id: Query<Option<Uuid>>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        #[oai(name = "Prefer")] prefer: Header<Option<String>>,
        body: JsonOrCsv<AssignBatchRequest>,
    ) -> Result<JobReply, Problem> {
        auth.require_admin()?;
        self.app.depth().admit()?;
        let (hash, asked) = match body {
            JsonOrCsv::Json(body) => (*body.hash(), Ok(body.value)),
            JsonOrCsv::Csv(body) => {
                let bytes = read_to_end(body, MAX_CSV_BYTES).await?;
                let book_id = book_id.0.ok_or_else(|| {
                    Problem::field(
                        "?book_id",
                        "required",
                        "A CSV file does not say which book; give book_id.",
                    )
                })?;
                (Sha256::digest(&bytes).into(), Err((book_id, bytes)))
            }
        };
        let prefer = prefer.0.as_deref();
        job_reply::accepted(&self.app, &auth, key, Some(&hash), prefer, async |tx| {
            let (book_id, items) = match asked {
                Ok(AssignBatchRequest { book_id, items }) => {
                    let item = |item: AssignItem| Item {
                        user_id: Some(item.user_id),
                        count: item.count,
                    };
                    (book_id, items.into_iter().map(item).collect())
                }
                Err((book_id, bytes)) => (book_id, batch::read_csv(tx, &bytes).await?),
            };
            batch::accept(tx, book_id, &items, origin(&auth, &id)).await
        })
        .await
    }
}

async fn accept_code(
    once: &mut Once,
    caller: &Caller,
    code: &str,
    book_id: Option<Uuid>,
    user_id: Uuid,
    id: &RequestId,
) -> Result<Uuid, coupon_core::Error> {
    let code = path_code(code)?;
    let as_user = !caller.may(Scope::Assign);
    let coupon = locate::locate_for_assignment(once.tx(), as_user, &code, book_id).await?;
    let wanted = Wanted::Code(coupon.code_key);
    let assignment = Assignment::new(caller, coupon.book_id, user_id, wanted, origin(caller, id));
    accept::accept(once.tx(), assignment).await
}
