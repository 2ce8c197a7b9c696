//! Who calls, what the caller may do, and how that is written down as the actor of an event.
//!
//! Invariant: a permission is asked for by name here and nowhere else. Deny is the default: a use case that asks for
//! nothing is open to whoever is logged in.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Refusal, Result};

/// The role of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// May do everything.
    Admin,
    /// Sees and uses its own coupons.
    User,
}

impl Role {
    /// The spelling in the database and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::User => "user",
        }
    }

    /// From that spelling.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "admin" => Some(Self::Admin),
            "user" => Some(Self::User),
            _ => None,
        }
    }
}

/// What an API key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Read books, coupons and jobs.
    Read,
    /// Assign coupons for anybody; see its own jobs.
    Assign,
    /// Lock, unlock and redeem for the holder; look up a code.
    Redeem,
    /// What an administrator may do.
    Manage,
}

impl Scope {
    /// The spelling in the database and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Assign => "assign",
            Self::Redeem => "redeem",
            Self::Manage => "manage",
        }
    }

    /// From that spelling.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Read, Self::Assign, Self::Redeem, Self::Manage]
            .into_iter()
            .find(|scope| scope.as_str() == text)
    }
}

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The id of the user or of the API key.
    pub id: Uuid,
    /// What it is and may do.
    pub access: Access,
}

/// What a caller is and may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// A person who is logged in.
    User(Role),
    /// A machine with a key.
    ApiKey(Vec<Scope>),
}

impl Caller {
    fn has(&self, scope: Scope) -> bool {
        match &self.access {
            Access::User(role) => *role == Role::Admin,
            Access::ApiKey(scopes) => scopes.contains(&scope) || scopes.contains(&Scope::Manage),
        }
    }

    /// Whether the caller is an administrator, or a key with the scope `manage`.
    pub fn is_admin(&self) -> bool {
        self.has(Scope::Manage)
    }

    /// Whether the caller is a person, not a machine.
    pub fn user_id(&self) -> Option<Uuid> {
        matches!(self.access, Access::User(_)).then_some(self.id)
    }

    /// Administrators, and keys with the scope `manage`.
    ///
    /// # Errors
    /// `forbidden`.
    pub fn require_admin(&self) -> Result<()> {
        self.require(Scope::Manage)
    }

    /// Administrators, and keys with `scope` (or `manage`).
    ///
    /// # Errors
    /// `forbidden`.
    pub fn require(&self, scope: Scope) -> Result<()> {
        if self.has(scope) {
            Ok(())
        } else {
            Err(Refusal::forbidden().into())
        }
    }

    /// Whether the caller may do what `scope` allows, for everybody.
    pub fn may(&self, scope: Scope) -> bool {
        self.has(scope)
    }

    /// How the caller is written down.
    pub fn actor(&self) -> Actor {
        let kind = match self.access {
            Access::User(_) => ActorKind::User,
            Access::ApiKey(_) => ActorKind::ApiKey,
        };
        Actor {
            kind,
            id: Some(self.id),
        }
    }
}

/// Who caused something, as events and jobs keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// User, API key, or the service itself.
    pub kind: ActorKind,
    /// Its id; `None` for the service itself.
    pub id: Option<Uuid>,
}

impl Actor {
    /// The service itself: sweeps and schedules.
    pub const SYSTEM: Self = Self {
        kind: ActorKind::System,
        id: None,
    };
}

/// What sort of actor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActorKind {
    /// A person.
    User,
    /// A machine.
    ApiKey,
    /// The service itself.
    System,
}

impl ActorKind {
    /// The spelling in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::ApiKey => "api_key",
            Self::System => "system",
        }
    }
}
