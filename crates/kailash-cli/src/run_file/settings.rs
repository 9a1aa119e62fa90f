//! Settings of the library from those of a run file: what is not said keeps its default.

use kailash::bulkhead::PartitionConfig;
use kailash::circuit_breaker;
use kailash_workflow::rows::ColumnType;

use super::duration::{ShareOrOff, Span, SpanOrOff};
use super::schema;

pub(super) fn breaker(settings: schema::Breaker) -> circuit_breaker::Overrides {
    let whole = |given: Option<i64>| given.map(|given| count(Some(given), 0));
    let span = |given: Option<Span>| given.map(|span| span.0);
    let or_off = |given: Option<SpanOrOff>| given.map(|span| span.0);
    let share = |given: Option<ShareOrOff>| given.map(|share| share.0);
    circuit_breaker::Overrides {
        base: settings.base,
        failure_threshold: whole(settings.failure_threshold),
        success_threshold: whole(settings.success_threshold),
        recovery_timeout: span(settings.recovery_timeout),
        max_recovery_timeout: span(settings.max_recovery_timeout),
        half_open_requests: whole(settings.half_open_requests),
        error_rate_threshold: share(settings.error_rate_threshold),
        window: settings.window.map(|word| word.0),
        window_size: whole(settings.window_size),
        window_duration: span(settings.window_duration),
        min_calls_before_evaluation: whole(settings.min_calls_before_evaluation),
        slow_call_threshold: or_off(settings.slow_call_threshold),
        slow_call_rate_threshold: share(settings.slow_call_rate_threshold),
        overdue_calls_enabled: settings.overdue_calls_enabled,
        max_wait_duration_in_half_open: span(settings.max_wait_duration_in_half_open),
        exponential_backoff_multiplier: settings.exponential_backoff_multiplier,
        jitter_enabled: settings.jitter_enabled,
        max_jitter_percentage: settings.max_jitter_percentage,
        cancelled_counts_after: or_off(settings.cancelled_counts_after),
        ramp_enabled: settings.ramp_enabled,
        initial_state: settings.initial_state.map(|word| word.0),
    }
}

/// A count; one that no `u32` holds becomes one that no range allows.
pub(super) fn count(given: Option<i64>, default: u32) -> u32 {
    let Some(given) = given else { return default };
    u32::try_from(given).unwrap_or(if given < 0 { 0 } else { u32::MAX })
}

pub(super) fn partition(settings: schema::Partition, base: PartitionConfig) -> PartitionConfig {
    let optional = |given: Option<i64>, base: Option<u32>| match given {
        None => base,
        given => Some(count(given, 0)),
    };
    let priority = settings.priority.unwrap_or(i64::from(base.priority));
    PartitionConfig {
        max_concurrent_operations: count(
            settings.max_concurrent_operations,
            base.max_concurrent_operations,
        ),
        queue_size: count(settings.queue_size, base.queue_size),
        timeout: settings.timeout.map_or(base.timeout, |span| span.0),
        priority: u8::try_from(priority).unwrap_or(0),
        max_threads: optional(settings.max_threads, base.max_threads),
        max_connections: optional(settings.max_connections, base.max_connections),
        evict_lower_priority: settings
            .evict_lower_priority
            .unwrap_or(base.evict_lower_priority),
        queue_order: settings.queue_order.map_or(base.queue_order, |word| word.0),
        reject_hopeless: settings.reject_hopeless.unwrap_or(base.reject_hopeless),
        ..base
    }
}

pub(super) fn column_type(chosen: schema::ColumnType) -> ColumnType {
    use schema::ColumnType as Chosen;
    match chosen {
        Chosen::Text => ColumnType::Text,
        Chosen::Int => ColumnType::Int,
        Chosen::Float => ColumnType::Float,
        Chosen::Decimal => ColumnType::Decimal,
        Chosen::Bool => ColumnType::Bool,
        Chosen::Date => ColumnType::Date,
        Chosen::Time => ColumnType::Time,
        Chosen::DateTime => ColumnType::DateTime,
        Chosen::Uuid => ColumnType::Uuid,
    }
}
