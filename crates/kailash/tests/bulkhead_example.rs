//! The example that shows what a partition is for runs to its end.

use std::time::Duration;

#[path = "../examples/bulkhead_isolation.rs"]
#[expect(dead_code, reason = "its main is not called")]
mod bulkhead_isolation;

/// Long enough for all slots to be taken, short enough to be run each time.
const BRIEF: Duration = Duration::from_millis(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_calls_that_share_a_partition_with_slow_ones_wait() {
    let [alone, apart, together] = bulkhead_isolation::measure(BRIEF).await.unwrap();
    assert_eq!((alone.waited, apart.waited), (0, 0));
    assert!(together.waited > 0);
    for row in [alone, apart, together] {
        assert_eq!(row.took.len(), 100, "beside {}", row.beside);
    }
}
