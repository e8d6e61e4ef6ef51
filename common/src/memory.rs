//! The allocator of every binary, and how much it takes.

/// Records and answers are made on one thread and dropped on another, which the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Lets this process take memory in small pages from now on. With huge ones, which the allocator asks for, a worker takes twice the memory,
/// and is no faster.
pub fn use_small_pages() {
    // Where the kernel does not know of it, there are no huge pages.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "huge pages stay");
    }
}
