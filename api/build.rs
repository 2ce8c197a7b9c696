//! The built UI is compiled in: when a build of it has added or removed files, this crate is compiled again.

fn main() {
    println!("cargo:rerun-if-changed=../web/dist");
}
