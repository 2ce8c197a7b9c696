//! Codes from patterns: a look ahead, and the job that makes them.

use std::borrow::Cow;

use coupon_core::generate::{
    create::{self, NewGeneration},
    pattern::Given,
    preview::{self, Preview},
};
use poem_openapi::{
    Object, OpenApi,
    param::{Header, Path},
    registry::{MetaSchema, MetaSchemaRef},
    types::{ParseError, ParseFromJSON, ParseResult, ToJSON, Type},
};
use serde_json::Value;
use uuid::Uuid;

use super::{
    Metadata, Tag, check_metadata, check_time,
    job_reply::{self, JobReply},
};
use crate::{
    Body, Nullable, Problem, RequestId,
    app::App,
    auth::Auth,
    once::{self, Begun, IdempotencyKey, Once},
    reply::Reply,
    time::Time,
};

/// A pattern to be looked at before codes are made of it.
#[derive(Debug, Object)]
pub struct PreviewRequest {
    /// `#` is a digit, `?` an upper-case letter, `*` a symbol of the alphabet, `\` makes the next character a literal.
    #[oai(validator(min_length = 1, max_length = 200))]
    pattern: String,
    /// What `*` stands for: digits, letters, alphanumeric (the default), unambiguous, or a list of distinct symbols.
    #[oai(validator(min_length = 1, max_length = 200))]
    alphabet: Option<String>,
    /// Whether a check character follows the last placeholder.
    check: Option<bool>,
    /// How many codes are wanted.
    #[oai(validator(minimum(value = "1"), maximum(value = "10000000")))]
    count: i64,
}

/// What a pattern would give.
#[derive(Debug, Object)]
#[oai(rename = "CodesPreview")]
pub struct PreviewView {
    /// How many codes the pattern spells; beyond 2^64 rounded.
    space: Whole,
    /// Which share of them would be coupons, those of this pattern that exist included.
    density: f64,
    /// The odds of meeting a coupon in 1,000 tries.
    guess_odds: f64,
    /// Codes that show the form; none is or becomes a coupon.
    sample: Vec<String>,
    /// Whether codes would be made: the pattern spells at least ten for each coupon.
    ok: bool,
    /// How many characters codes would need, if not.
    #[oai(skip_serializing_if_is_none)]
    needed_length: Option<u32>,
    /// How many they would need so that a guess is one in a million; null when it is already, or no length would do.
    safe_length: Nullable<u32>,
    /// What to mind, for people; null when there is nothing.
    warning: Nullable<String>,
}

impl From<Preview> for PreviewView {
    fn from(preview: Preview) -> Self {
        let outlook = preview.outlook;
        let length = |length: Option<usize>| length.and_then(|length| u32::try_from(length).ok());
        Self {
            space: Whole(outlook.space),
            density: outlook.density,
            guess_odds: outlook.guess_odds,
            sample: preview.sample,
            ok: outlook.ok,
            needed_length: length(outlook.needed_length),
            safe_length: length(outlook.safe_length).into(),
            warning: outlook.warning().into(),
        }
    }
}

/// A whole number of any size: exact up to 64 bits, rounded beyond, as most readers of JSON would do themselves.
#[derive(Debug, Clone, Copy)]
pub struct Whole(u128);

impl Type for Whole {
    const IS_REQUIRED: bool = true;

    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        "number".into()
    }

    fn schema_ref() -> MetaSchemaRef {
        MetaSchemaRef::Inline(Box::new(MetaSchema::new("number")))
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
        Box::new(std::iter::once(self))
    }
}

impl ToJSON for Whole {
    fn to_json(&self) -> Option<Value> {
        Some(u64::try_from(self.0).map_or_else(|_| Value::from(self.0 as f64), Value::from))
    }
}

impl ParseFromJSON for Whole {
    fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
        match value.as_ref().and_then(Value::as_u64) {
            Some(number) => Ok(Self(number.into())),
            None => Err(ParseError::expected_type(value.unwrap_or_default())),
        }
    }
}

/// Codes to be made.
#[derive(Debug, Object)]
pub struct GenerateRequest {
    /// How many.
    #[oai(validator(minimum(value = "1"), maximum(value = "10000000")))]
    count: i64,
    /// How they are spelled; the book's pattern if absent.
    #[oai(validator(min_length = 1, max_length = 200))]
    pattern: Option<String>,
    /// What `*` stands for: digits, letters, alphanumeric (the default), unambiguous, or a list of distinct symbols.
    #[oai(validator(min_length = 1, max_length = 200))]
    alphabet: Option<String>,
    /// Whether a check character follows the last placeholder.
    check: Option<bool>,
    /// When the coupons expire.
    expires_at: Option<Time>,
    /// Your own fields, on each coupon.
    metadata: Option<Metadata>,
}

/// The endpoints of codes from patterns.
pub struct Generate {
    /// What handlers share.
    pub app: App,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Books")]
impl Generate {
    /// Look ahead: how many codes a pattern spells, how hard they are to guess, and what they look like. Nothing is made.
    #[oai(path = "/books/:id/codes/preview", method = "post")]
    async fn preview(
        &self,
        auth: Auth,
        id: Path<Uuid>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Body<PreviewRequest>,
    ) -> Result<Reply<PreviewView>, Problem> {
        auth.require_admin()?;
        let mut once = match Once::begin(&self.app, self.app.db(), &auth, key, Some(body.hash())).await? {
            Begun::Fresh(once) => once,
            Begun::Before(answer) => return once::again(answer),
        };
        let given = Given {
            pattern: &body.pattern,
            alphabet: body.alphabet.as_deref(),
            check: body.check.unwrap_or(false),
        };
        let preview = preview::preview(once.tx(), id.0, given, body.count).await;
        once.finish(preview.map(PreviewView::from), |_| None).await
    }

    /// Make codes from a pattern: a job. While another job adds codes to the book, this one waits.
    #[oai(path = "/books/:id/codes/generate", method = "post")]
    async fn generate(
        &self,
        auth: Auth,
        request_id: RequestId,
        id: Path<Uuid>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        #[oai(name = "Prefer")] prefer: Header<Option<String>>,
        body: Body<GenerateRequest>,
    ) -> Result<JobReply, Problem> {
        auth.require_admin()?;
        let hash = *body.hash();
        let wanted = body.value;
        let metadata = check_metadata(wanted.metadata)?;
        let expires_at = check_time("/expires_at", wanted.expires_at)?;
        self.app.depth().admit()?;
        let new = NewGeneration {
            book_id: id.0,
            count: wanted.count,
            pattern: wanted.pattern.as_deref(),
            alphabet: wanted.alphabet.as_deref(),
            check: wanted.check.unwrap_or(false),
            expires_at,
            metadata,
            actor: auth.actor(),
            request_id: Some(request_id.as_str()),
        };
        let prefer = prefer.0.as_deref();
        job_reply::accepted(&self.app, &auth, key, Some(&hash), prefer, async |tx| {
            create::create(tx, &new).await
        })
        .await
    }
}
