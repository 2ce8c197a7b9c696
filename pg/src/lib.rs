//! A private PostgreSQL server, run from the binaries on this machine as a child of this process.
//!
//! Invariant: at most one server runs on a data directory, and it never outlives the process that started
//! it. The first half is a `flock` held beside the directory, the second the kernel's parent-death signal;
//! neither needs a clean exit of ours. Whatever was acknowledged before a kill is there after the next start.
//!
//! | file | holds |
//! |---|---|
//! | `<data_dir>` | the cluster (`PGDATA`) |
//! | `<data_dir>.lock` | the lock of the process whose server runs there |
//! | `<data_dir>.socket/` | the unix socket, for nobody but the server's user (and root); in `/tmp` if the path is too long |
//!
//! **Who may connect.** The server listens on no TCP port. Its socket lies in a directory of mode 0700 and is
//! trusted without a password: whoever gets past the directory could read the data files just as well, so a
//! password would guard nothing and would have to be stored beside them. The service connects as the ordinary
//! role `couponbook`, which owns the database of that name and is no superuser.
//!
//! **Root.** PostgreSQL refuses to run as root. Started by root, the server runs as the owner of an existing
//! data directory, else as `postgres`, else as `nobody`.
//!
//! [`testing`] gives every test a database of its own.

mod account;
mod binaries;
mod connect;
mod data_dir;
mod error;
mod launch;
mod socket;
pub mod testing;

pub use binaries::find_binaries;
pub use error::StartError;
pub use launch::{Embedded, Options};
