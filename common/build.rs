//! `setup` contains the migrations: a new one is a reason to build it again, which Cargo does not see by itself.

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
