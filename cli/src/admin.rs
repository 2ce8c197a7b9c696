//! Accounts that are made from the machine itself.

use std::io::{BufRead, IsTerminal};

use anyhow::{Context, bail};
use coupon_core::{
    Code, Error,
    caller::Role,
    config::Settings,
    db::{self, Db},
    user::{self, NewUser, password::Passwords},
};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::{print, say};

/// Makes the first administrator from the settings when there is none; safe to call in many processes at once.
pub(crate) async fn ensure_first(settings: &Settings, db: &Db) -> anyhow::Result<()> {
    let (email, password) = match (&settings.admin_email, &settings.admin_password) {
        (Some(email), Some(password)) => (email, password),
        (None, None) => return Ok(()),
        _ => {
            bail!("COUPONBOOK_ADMIN_EMAIL and COUPONBOOK_ADMIN_PASSWORD go together; one of them is missing")
        }
    };
    let mut connection = db
        .pool()
        .acquire()
        .await
        .context("the database does not answer")?;
    if user::has_admin(&mut connection).await? {
        return Ok(());
    }
    drop(connection);
    let password_hash = Passwords::new()
        .hash_new(password.reveal(), email, email)
        .await
        .context("COUPONBOOK_ADMIN_PASSWORD cannot be used")?;
    let new = NewUser {
        email: email.clone(),
        name: email.clone(),
        password_hash: Some(password_hash),
        role: Role::Admin,
    };
    let mut tx = db.begin().await?;
    let made = user::ensure_first_admin(&mut tx, &new).await?;
    db::commit(tx).await?;
    if made.is_some() {
        say(&format!("made the first administrator, {email}"));
    }
    Ok(())
}

/// Makes an account; prints its id.
pub(crate) async fn create_user(
    settings: &Settings,
    email: String,
    name: Option<String>,
    role: Role,
) -> anyhow::Result<()> {
    let Some(url) = &settings.database_url else {
        bail!("COUPONBOOK_DATABASE_URL is not set");
    };
    let password = match &settings.admin_password {
        Some(password) => password.reveal().to_owned(),
        None => ask_password()?,
    };
    let name = name.unwrap_or_else(|| email.clone());
    let password_hash = Passwords::new().hash_new(&password, &email, &name).await?;
    let db = Db::connect(url.reveal(), db::Role::Api, 1)?;
    let mut tx = db.begin().await.context("the database does not answer")?;
    let made = user::create(
        &mut tx,
        &NewUser {
            email,
            name,
            password_hash: Some(password_hash),
            role,
        },
    )
    .await;
    let user = match made {
        Err(Error::Refused(refusal)) if refusal.code == Code::EmailTaken => {
            bail!("another account has this e-mail address")
        }
        made => made?,
    };
    db::commit(tx).await?;
    db.close().await;
    print(&user.id.to_string());
    Ok(())
}

/// A password from a prompt without echo, or the first line of stdin when that is no terminal.
fn ask_password() -> anyhow::Result<String> {
    let stdin = std::io::stdin();
    let mut line = String::new();
    if stdin.is_terminal() {
        say("Password:");
        let before = tcgetattr(&stdin)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Now, &silent)?;
        let read = stdin.lock().read_line(&mut line);
        tcsetattr(&stdin, OptionalActions::Now, &before)?;
        read?;
    } else {
        stdin.lock().read_line(&mut line)?;
    }
    let password = line.trim_end_matches(['\n', '\r']).to_owned();
    if password.is_empty() {
        bail!("no password was given");
    }
    Ok(password)
}
