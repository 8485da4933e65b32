//! What people and CI run in this repository: `cargo xtask`.

fn main() {}
