//! The URLs of a server behind a unix socket, and the role and database that the service expects there.

use std::fmt::Write as _;
use std::path::Path;
use std::str::FromStr as _;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

/// The role and the database of the service.
pub(crate) const NAME: &str = "couponbook";
/// The superuser that `initdb` makes; only the launcher uses it.
pub(crate) const SUPERUSER: &str = "postgres";

/// A URL for sqlx and libpq. Everything is spelled out, so that PGPORT, PGSSLMODE and the like do not matter.
pub(crate) fn url(socket_dir: &Path, role: &str, database: &str) -> String {
    let mut url = format!("postgres://{role}@localhost:5432/{database}?sslmode=disable&host=");
    for byte in socket_dir.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' => {
                url.push(char::from(*byte))
            }
            other => write!(url, "%{other:02X}").expect("a String takes every write"),
        }
    }
    url
}

/// Connects once, without a pool.
pub(crate) async fn connect(url: &str) -> sqlx::Result<PgConnection> {
    PgConnection::connect_with(&PgConnectOptions::from_str(url)?).await
}

/// Runs one statement whose names are our own constants or checked by the caller.
pub(crate) async fn execute(connection: &mut PgConnection, sql: String) -> sqlx::Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(connection)
        .await
        .map(drop)
}

/// Creates the service's role and database where they are missing.
pub(crate) async fn prepare(socket_dir: &Path, role_options: &str) -> sqlx::Result<()> {
    let mut connection = connect(&url(socket_dir, SUPERUSER, "postgres")).await?;
    let role = sqlx::query("SELECT FROM pg_roles WHERE rolname = $1").bind(NAME);
    if role.fetch_optional(&mut connection).await?.is_none() {
        execute(
            &mut connection,
            format!("CREATE ROLE {NAME} LOGIN {role_options}"),
        )
        .await?;
    }
    let database = sqlx::query("SELECT FROM pg_database WHERE datname = $1").bind(NAME);
    if database.fetch_optional(&mut connection).await?.is_none() {
        execute(&mut connection, format!("CREATE DATABASE {NAME} OWNER {NAME}")).await?;
    }
    connection.close().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_odd_characters_survives_the_url() {
        let url = url(Path::new("/a b+c%/ü"), NAME, NAME);
        assert_eq!(
            url,
            "postgres://couponbook@localhost:5432/couponbook?sslmode=disable&host=/a%20b%2Bc%25/%C3%BC"
        );
        let options = PgConnectOptions::from_str(&url).expect("a valid URL");
        assert_eq!(
            options.get_socket().map(|path| path.as_path()),
            Some(Path::new("/a b+c%/ü"))
        );
    }
}
