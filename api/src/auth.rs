//! `auth: Auth` in a handler's arguments: who calls, by bearer token or API key.
//!
//! Invariant: an operation without it is open to strangers, and a test lists the few that are. For requests that change
//! something the account is asked for in the database each time; for reads it may be remembered for some seconds. Every
//! request is counted here against the caller's rate limit, one with bad credentials against its address's.

use coupon_core::{Code, caller::Caller};
use poem::{Request, RequestBody, Result, http::header::AUTHORIZATION};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaSecurityScheme, Registry},
};

use crate::{app::App, problem::Problem, rate_limit};

const BEARER: &str = "bearer";
const API_KEY: &str = "api_key";
const X_API_KEY: &str = "X-Api-Key";

/// An authenticated caller.
#[derive(Debug)]
pub struct Auth(pub Caller);

impl std::ops::Deref for Auth {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.0
    }
}

impl Auth {
    async fn read(request: &Request) -> Result<Self, Problem> {
        let app = request.data::<App>().ok_or_else(Problem::internal)?;
        let fresh = !request.method().is_safe();
        let header = |name: &str| {
            let mut values = request.headers().get_all(name).iter();
            match (values.next(), values.next()) {
                (Some(value), None) => Ok(Some(value.to_str().map_err(|_| unreadable())?.to_owned())),
                (None, _) => Ok(None),
                (Some(_), Some(_)) => Err(unreadable()),
            }
        };
        let caller = match (header(AUTHORIZATION.as_str())?, header(X_API_KEY)?) {
            (Some(value), None) => {
                let token = value
                    .split_once(' ')
                    .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
                    .map(|(_, token)| token.trim())
                    .ok_or_else(unreadable)?;
                app.authenticator().authenticate_bearer(token, fresh).await?
            }
            (None, Some(key)) => app.authenticator().authenticate_key(key.trim(), fresh).await?,
            (Some(_), Some(_)) => {
                return Err(Problem::new(
                    Code::Unauthenticated,
                    "Send a bearer token or an API key, not both.",
                ));
            }
            (None, None) => {
                return Err(Problem::new(
                    Code::Unauthenticated,
                    "This needs a bearer token or an API key.",
                ));
            }
        };
        Ok(Self(caller))
    }
}

fn unreadable() -> Problem {
    Problem::new(
        Code::Unauthenticated,
        "The credentials cannot be read: send `Authorization: Bearer …` or `X-Api-Key: …`.",
    )
}

impl<'a> ApiExtractor<'a> for Auth {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];

    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        let blank = || MetaSecurityScheme {
            ty: "",
            description: None,
            name: None,
            key_in: None,
            scheme: None,
            bearer_format: None,
            flows: None,
            openid_connect_url: None,
        };
        registry.create_security_scheme(
            BEARER,
            MetaSecurityScheme {
                ty: "http",
                description: Some("The access token of a person, from /v1/auth/login."),
                scheme: Some("bearer"),
                bearer_format: Some("JWT"),
                ..blank()
            },
        );
        registry.create_security_scheme(
            API_KEY,
            MetaSecurityScheme {
                ty: "apiKey",
                description: Some("The key of a machine, from /v1/api-keys."),
                name: Some(X_API_KEY),
                key_in: Some("header"),
                ..blank()
            },
        );
    }

    fn security_schemes() -> Vec<&'static str> {
        vec![BEARER, API_KEY]
    }

    async fn from_request(
        request: &'a Request,
        _body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> Result<Self> {
        let app = request.data::<App>().ok_or_else(Problem::internal)?;
        match Self::read(request).await {
            Ok(auth) => {
                rate_limit::count_caller(app, request, &auth)?;
                Ok(auth)
            }
            Err(problem) if problem.code() == Code::Unauthenticated => {
                rate_limit::count_stranger(app, request)?;
                Err(problem.into())
            }
            Err(problem) => Err(problem.into()),
        }
    }
}
