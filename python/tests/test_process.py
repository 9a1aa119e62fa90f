"""What holds for whole processes: forks, exits, and what importing starts."""

from __future__ import annotations

import textwrap

import pytest
from servers import Redis, run_python


def check(code: str, *arguments: str) -> str:
    """Runs a program that must end by itself, quietly and with success."""
    done = run_python(textwrap.dedent(code), *arguments)
    assert done.returncode == 0, done.stderr[-4000:]
    assert not done.stderr, done.stderr[-4000:]
    return done.stdout


FORK = """
    import asyncio, os, sys, threading, time

    def in_child(function):
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            try:
                function()
                os._exit(0)
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
        end = time.monotonic() + 30
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                assert status == 0, status
                return
            if time.monotonic() > end:
                os.kill(child, 9)
                raise SystemExit("the child hangs")
            time.sleep(0.01)
"""


def test_importing_starts_no_thread() -> None:
    check(
        """
        import threading
        import kailash.core.resilience, kailash.nodes, kailash.workflow, kailash.runtime
        assert threading.active_count() == 1
        import os
        assert len(os.listdir("/proc/self/task")) == 1
        """
    )


def test_a_forked_child_has_breakers_without_calls_in_flight() -> None:
    check(
        FORK
        + """
    from kailash.core.resilience.circuit_breaker import *
    guard = get_circuit_breaker(
        "b", failure_threshold=1, recovery_timeout=0.01, half_open_requests=1, success_threshold=1)
    heard = []
    guard.add_listener(lambda old, new, metrics: heard.append(new.value))
    guard.record_failure()
    while guard.state is not CircuitState.HALF_OPEN:
        time.sleep(0.001)
    held = threading.Event()
    def probe():
        with guard:
            held.set()
            time.sleep(0.5)
    thread = threading.Thread(target=probe)
    thread.start()
    held.wait()
    try:
        guard(lambda: 1)()
        raise SystemExit("the probe's slot was free")
    except CircuitBreakerError:
        pass

    def child():
        assert guard.state is CircuitState.HALF_OPEN
        assert guard(lambda: 1)() == 1
        assert guard.state is CircuitState.CLOSED
        guard.force_open()
        end = time.monotonic() + 10
        while heard[-2:] != ["closed", "open"]:
            assert time.monotonic() < end, heard
            time.sleep(0.01)

    in_child(child)
    thread.join()
    assert guard.state is CircuitState.CLOSED
    """
    )


def test_a_forked_child_has_keys_without_calls_in_flight() -> None:
    check(
        FORK
        + """
    from kailash.core.resilience.circuit_breaker import *
    config = CircuitBreakerConfig(
        failure_threshold=1, recovery_timeout=0.01, half_open_requests=1, success_threshold=1)
    hosts = CircuitBreakerManager().keyed("host", config)
    hosts["a"].record_failure()
    while hosts["a"].state is not CircuitState.HALF_OPEN:
        time.sleep(0.001)
    with hosts["a"]:
        try:
            hosts["a"].call(int)
            raise SystemExit("the probe's slot was free")
        except CircuitBreakerError:
            pass

        def child():
            assert hosts["a"].call(int) == 0
            assert hosts["a"].state is CircuitState.CLOSED

        in_child(child)
        assert hosts["a"].state is CircuitState.HALF_OPEN
    assert hosts["a"].state is CircuitState.CLOSED
    """
    )


def test_a_forked_child_has_partitions_with_nobody_inside() -> None:
    check(
        FORK
        + """
    from kailash.core.resilience.bulkhead import *
    manager = get_bulkhead_manager()
    manager.configure_partition(PartitionConfig(
        "p", PartitionType.CUSTOM, max_concurrent_operations=2, queue_size=7))
    part = manager.get_partition("p")
    part.acquire()

    async def main():
        waits = asyncio.ensure_future(part.execute(time.sleep, 0.5))
        await asyncio.sleep(0.1)
        queued = asyncio.ensure_future(part.execute(lambda: "queued"))
        await asyncio.sleep(0.1)
        assert part.metrics.active_operations == 2 and part.metrics.queued_operations == 1

        def child():
            assert part.metrics.active_operations == 0 and part.metrics.queued_operations == 0
            assert part.config.queue_size == 7
            try:
                part.release()
                raise SystemExit("the parent's slot was released")
            except RuntimeError:
                pass

            def run():
                assert asyncio.run(execute_with_bulkhead("p", lambda: "sync")) == "sync"
                assert asyncio.run(execute_with_bulkhead("database", asyncio.sleep, 0, 1)) == 1
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()

        in_child(child)
        assert await queued == "queued"
        await waits
        part.release()
        assert part.metrics.active_operations == 0

    asyncio.run(main())
    """
    )


def test_a_call_that_forks_gives_its_slot_back_in_the_parent_only() -> None:
    check(
        FORK
        + """
    from kailash.core.resilience.bulkhead import *
    from kailash.core.resilience.circuit_breaker import *
    guard = get_circuit_breaker("b")
    part = get_bulkhead_manager().get_partition("critical")
    def both():
        with guard, part:
            in_child(lambda: None)
            child = os.fork()
            if child == 0:
                return "child"
            os.waitpid(child, 0)
        return "parent"
    if both() == "child":
        assert part.metrics.active_operations == 0 and guard.metrics.total_calls == 0
        os._exit(0)
    assert part.metrics.active_operations == 0 and guard.metrics.successful_calls == 1
    """
    )


def test_a_forked_child_has_nodes_and_monitors_of_its_own(
    postgres_url: str, redis_server: Redis
) -> None:
    check(
        FORK
        + """
    from kailash.core.resilience.health_monitor import *
    from kailash.nodes import SQLDatabaseNode, Node
    from kailash.runtime import LocalRuntime
    from kailash.workflow import WorkflowBuilder
    url, port = sys.argv[1], int(sys.argv[2])
    node = SQLDatabaseNode(url)
    backend = lambda: node.execute(query="SELECT pg_backend_pid() AS pid")["data"][0]["pid"]
    parents = backend()
    class Own(Node):
        def run(self, **inputs):
            return os.getpid()
    builder = WorkflowBuilder()
    builder.add_node("SQLDatabaseNode", "db", {"connection_string": url, "query": "SELECT pg_backend_pid() AS pid"})
    builder.add_node(Own, "own")
    workflow = builder.build()
    def by_workflow():
        results, _ = LocalRuntime().execute(workflow)
        assert results["own"] == {"result": os.getpid()}, results
        return results["db"]["data"][0]["pid"]
    of_workflow = by_workflow()
    class Pid(HealthCheck):
        async def check_health(self):
            return {"status": "healthy", "message": str(os.getpid())}
    monitor = get_health_monitor(check_interval=0.05)
    monitor.register_check("db", DatabaseHealthCheck("db", url))
    monitor.register_check("cache", RedisHealthCheck("cache", {"host": "127.0.0.1", "port": port}))
    monitor.register_check("pid", Pid("pid"))
    async def health():
        results = await monitor.get_all_health_status()
        assert all(result.is_healthy for result in results.values()), results
        assert results["pid"].message == str(os.getpid())
    asyncio.run(health())

    def child():
        assert backend() != parents
        assert by_workflow() not in (parents, of_workflow)
        assert builder.get_node("db").execute()["data"]
        asyncio.run(health())
        assert monitor.is_monitoring

    for _ in range(3):
        in_child(child)
    assert backend() == parents, "a child closed its parent's connection"
    asyncio.run(health())
    """,
        postgres_url,
        str(redis_server.port),
    )


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_works_by_every_method(method: str) -> None:
    check(
        f"""
        import multiprocessing, sys
        sys.path.insert(0, {str(__file__.rsplit("/", 1)[0])!r})
        from for_multiprocessing import warm, work
        if __name__ == "__main__":
            warm()
            with multiprocessing.get_context({method!r}).Pool(2) as pool:
                assert pool.map(work, range(8)) == [2 * n for n in range(8)]
        """
    )


def test_a_process_with_everything_running_ends_by_itself(redis_server: Redis) -> None:
    check(
        """
        import asyncio, sys, threading, time
        from kailash.core.resilience.bulkhead import *
        from kailash.core.resilience.circuit_breaker import *
        from kailash.core.resilience.health_monitor import *
        from kailash.nodes import SQLDatabaseNode, Node
        from kailash.runtime import LocalRuntime
        from kailash.workflow import WorkflowBuilder

        class Slow(HealthCheck):
            async def check_health(self):
                await asyncio.sleep(0.001)
                return True

        class Blocking(HealthCheck):
            def check_health(self):
                time.sleep(1000)

        class Own(Node):
            def run(self, **inputs):
                return 1

        monitor = get_health_monitor(check_interval=0.01, alert_threshold=1)
        monitor.register_alert_callback(lambda alert: time.sleep(0.01))
        monitor.register_check("cache", RedisHealthCheck("cache", {"host": "127.0.0.1", "port": int(sys.argv[1])}))
        monitor.register_check("slow", Slow("slow"))
        monitor.register_check("blocking", Blocking("blocking", timeout=0.01))
        guard = get_circuit_breaker("b", failure_threshold=1)
        guard.add_listener(lambda *news: time.sleep(0.01))

        async def listener(*news):
            await asyncio.sleep(1000)

        async def main():
            guard.add_listener(listener)
            guard.record_failure()
            try:
                await execute_with_bulkhead("background", time.sleep, 1000, timeout=0.05)
            except TimeoutError:
                pass
            assert SQLDatabaseNode("sqlite::memory:").execute(query="SELECT 1 AS n")["data"]
            builder = WorkflowBuilder()
            builder.add_node(Own, "own")
            assert LocalRuntime().execute(builder.build())[0]["own"] == {"result": 1}
            await asyncio.sleep(0.2)
            assert await monitor.get_overall_health() is HealthStatus.UNHEALTHY

        asyncio.run(main())
        print("ended")
        """,
        str(redis_server.port),
    )


def test_ctrl_c_ends_a_call_that_waits_in_rust() -> None:
    out = check(
        """
        import os, signal, threading, time
        from kailash.nodes import HTTPRequestNode
        import socket
        silent = socket.create_server(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        began = time.monotonic()
        try:
            HTTPRequestNode().execute(url=f"http://127.0.0.1:{port}/")
        except KeyboardInterrupt:
            print("interrupted", time.monotonic() - began < 10)
        silent.close()
        """
    )
    assert out == "interrupted True\n"


def test_other_threads_run_while_a_call_waits_in_rust() -> None:
    check(
        """
        import socket, threading, time
        from kailash.nodes import HTTPRequestNode
        from kailash.sdk_exceptions import NodeExecutionError
        silent = socket.create_server(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        def call():
            try:
                HTTPRequestNode().execute(url=f"http://127.0.0.1:{port}/", timeout=0.5)
            except NodeExecutionError:
                pass
        thread = threading.Thread(target=call)
        thread.start()
        turns = 0
        while thread.is_alive():
            turns += 1
            time.sleep(0.001)
        assert turns > 50, turns
        silent.close()
        """
    )


def test_a_forked_child_tells_its_own_listeners() -> None:
    check(
        FORK
        + """
    from kailash.core.resilience.bulkhead import *
    part = get_bulkhead_manager().get_partition("api")
    heard = []
    part.add_listener(lambda event: heard.append(event.kind))

    def child():
        heard.clear()
        part.acquire()
        end = time.monotonic() + 10
        while heard != ["started"]:
            assert time.monotonic() < end, heard
            time.sleep(0.01)

    in_child(child)
    assert part.metrics.total_operations == 0
    """
    )


def test_a_forked_child_tells_its_own_subscribers() -> None:
    check(
        FORK
        + """
    from kailash.core.resilience.circuit_breaker import *
    manager = CircuitBreakerManager()
    guard, hosts, heard = manager.get_or_create("b"), manager.keyed("host"), []
    guard.subscribe(heard.append)
    manager.subscribe(heard.append)

    def told(count):
        end = time.monotonic() + 10
        while len(heard) < count:
            assert time.monotonic() < end, heard
            time.sleep(0.001)
        assert len(heard) == count

    guard.call(int)
    told(2)

    def child():
        guard.call(int)
        hosts["a"].call(int)
        told(5)

    in_child(child)
    guard.call(int)
    told(4)
    """
    )


def test_a_forked_child_tells_those_that_were_being_told_at_the_fork() -> None:
    check(
        FORK
        + """
    from kailash.core.resilience.circuit_breaker import *
    guard, begun, go_on, heard = CircuitBreaker(), [], threading.Event(), []

    def listener(old, new, metrics):
        begun.append(1)
        go_on.wait()
        heard.append(new)

    def subscriber(event):
        begun.append(1)
        go_on.wait()
        heard.append(event.kind)

    guard.add_listener(listener)
    guard.subscribe(subscriber)
    guard.force_open()
    while len(begun) < 2:
        time.sleep(0.001)

    def child():
        go_on.set()
        guard.force_close()
        end = time.monotonic() + 10
        while len(heard) < 2:
            assert time.monotonic() < end, heard
            time.sleep(0.001)
        assert set(heard) == {CircuitState.CLOSED, "transition"}

    in_child(child)
    go_on.set()
    """
    )


@pytest.mark.parametrize("is_awaiting", [False, True])
def test_a_child_that_is_forked_from_a_running_loop_tells_async_listeners(is_awaiting: bool) -> None:
    check(
        FORK
        + """
    from kailash.core.resilience.circuit_breaker import *
    guard, heard, go_on, ended = CircuitBreaker(), [], None, []

    async def listener(old, new, metrics):
        try:
            heard.append(new)
            await go_on.wait()
        finally:
            ended.append(new)

    async def subscriber(event):
        try:
            heard.append(event.kind)
            await go_on.wait()
        finally:
            ended.append(event.kind)

    async def main():
        global go_on
        go_on = asyncio.Event()
        if sys.argv[1] == "False":
            go_on.set()
        guard.add_listener(listener)
        guard.subscribe(subscriber)
        guard.force_open()
        while len(heard) < 2:
            await asyncio.sleep(0.001)

        def child():
            global go_on
            before = list(ended)
            heard.clear()
            go_on = asyncio.Event()
            go_on.set()
            guard.force_close()
            end = time.monotonic() + 10
            while len(heard) < 2 or len(ended) < len(before) + 2:
                assert time.monotonic() < end, heard
                time.sleep(0.001)
            assert set(heard) == set(ended[len(before):]) == {CircuitState.CLOSED, "transition"}

        in_child(child)
        go_on.set()
        guard.force_close()
        while len(ended) < 4:
            await asyncio.sleep(0.001)

    asyncio.run(main())
    """,
        str(is_awaiting),
    )


def test_one_whose_loop_was_closed_without_ending_its_tasks_is_told_on() -> None:
    done = run_python(
        textwrap.dedent(
            """
            import asyncio, gc, time
            from kailash.core.resilience.circuit_breaker import *
            guard, heard = CircuitBreaker(), []

            async def listener(event):
                heard.append(event.kind)
                if event.kind == "ended":
                    await asyncio.Event().wait()

            async def main():
                guard.subscribe(listener)
                guard.call(int)
                while not heard:
                    await asyncio.sleep(0.001)

            loop = asyncio.new_event_loop()
            loop.run_until_complete(main())
            loop.close()
            gc.collect()
            guard.force_open()
            end = time.monotonic() + 20
            while heard != ["ended", "transition"]:
                assert time.monotonic() < end, heard
                time.sleep(0.001)
            """
        )
    )
    # asyncio says what was left behind, to which this adds nothing.
    assert done.returncode == 0, done.stderr
    assert "Task was destroyed but it is pending" in done.stderr


def test_a_loop_that_runs_in_the_child_alone_tells_there() -> None:
    check(
        FORK
        + """
    from kailash.core.resilience.circuit_breaker import *
    guard, loop, loops = CircuitBreaker(), asyncio.new_event_loop(), []

    async def listener(old, new, metrics):
        loops.append(asyncio.get_running_loop())

    async def begin():
        guard.add_listener(listener)

    async def go_on():
        guard.force_open()
        while not loops:
            await asyncio.sleep(0.001)

    def child():
        loop.run_until_complete(go_on())
        assert loops == [loop]

    loop.run_until_complete(begin())
    in_child(child)
    loop.close()
    """
    )


def test_the_interpreter_ends_while_subscribers_are_told() -> None:
    check(
        """
        import asyncio, threading, time
        from kailash.core.resilience.circuit_breaker import *
        guard, begun = CircuitBreaker(), []
        def slow(event):
            begun.append(1)
            time.sleep(0.01)
        async def slow_too(event):
            begun.append(1)
            await asyncio.sleep(0.01)
        guard.subscribe(slow)
        guard.subscribe(slow_too)
        guard.subscribe(lambda event: None)
        def calls():
            while True:
                guard.call(int)
        threading.Thread(target=calls, daemon=True).start()
        while len(begun) < 4:
            time.sleep(0.001)
        """
    )


@pytest.mark.parametrize("pause", [0, 0.0005, 0.001])
def test_the_interpreter_ends_just_after_the_first_event(pause: float) -> None:
    for _ in range(10):
        check(
            """
            import sys, time
            from kailash.core.resilience.circuit_breaker import *
            guard = CircuitBreaker()
            guard.subscribe(lambda event: None)
            guard.call(int)
            time.sleep(float(sys.argv[1]))
            """,
            str(pause),
        )


def test_the_interpreter_ends_while_the_first_thread_is_started() -> None:
    check(
        """
        import threading, time
        from kailash.core.resilience.circuit_breaker import *
        begun = threading.Event()
        class Late(threading.Thread):
            def start(self):
                if "subscriber" in self.name:
                    begun.set()
                    time.sleep(0.1)
                super().start()
        threading.Thread = Late
        guard = CircuitBreaker()
        guard.subscribe(lambda event: None)
        guard.call(int)
        begun.wait()
        """
    )


def test_what_fails_at_exit_is_logged_and_keeps_nothing_else_from_ending() -> None:
    done = run_python(
        textwrap.dedent(
            """
            from kailash import _native, _process
            from kailash.core.resilience.circuit_breaker import *
            @_process.at_exit
            def fail():
                raise KeyError("mine")
            _process._at_exit.insert(0, lambda: print("others"))
            shut_down = _native.shut_down
            _native.shut_down = lambda: (shut_down(), print("shut down"))
            guard = CircuitBreaker()
            guard.subscribe(lambda event: None)
            guard.call(int)
            """
        )
    )
    assert (done.returncode, done.stdout) == (0, "others\nshut down\n"), done.stderr
    assert "KeyError: 'mine'" in done.stderr and "atexit" not in done.stderr


def test_ctrl_c_ends_a_threads_wait_in_a_queue() -> None:
    check(
        """
        import os, signal, threading, time
        from kailash.core.resilience.bulkhead import *
        part = BulkheadPartition(PartitionConfig(
            "p", PartitionType.CUSTOM, max_concurrent_operations=1))
        part.acquire()

        def interrupt():
            while not part.metrics.queued_operations:
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        try:
            part(lambda: 1)()
            raise SystemExit("it ran")
        except KeyboardInterrupt:
            pass
        assert part.metrics.queued_operations == 0
        """
    )


def test_ctrl_c_ends_a_threads_wait_for_a_breaker() -> None:
    check(
        """
        import os, signal, threading, time
        from kailash.core.resilience.circuit_breaker import *
        guard = CircuitBreaker()
        guard.force_open()
        interrupt = lambda: (time.sleep(0.2), os.kill(os.getpid(), signal.SIGINT))
        threading.Thread(target=interrupt).start()
        try:
            guard.ready_sync()
            raise SystemExit("nothing ended the wait")
        except KeyboardInterrupt:
            pass
        """
    )


def test_a_closed_breaker_is_not_waited_for_and_starts_no_thread() -> None:
    check(
        """
        import asyncio, threading
        from kailash.core.resilience.circuit_breaker import *
        guard = get_circuit_breaker("b")
        guard.ready_sync()
        asyncio.run(guard.wait_until_closed(1))
        import os
        assert len(os.listdir("/proc/self/task")) == 1
        """
    )


def test_a_forked_child_waits_for_breakers_and_leaves_its_parents_waits_alone() -> None:
    check(
        FORK
        + """
    from kailash.core.resilience.circuit_breaker import *
    guard = get_circuit_breaker("b")
    guard.force_open()
    waiter = threading.Thread(target=guard.ready_sync)
    waiter.start()

    async def main():
        waits = asyncio.ensure_future(guard.wait_until_closed())
        await asyncio.sleep(0.05)

        def child():
            threading.Timer(0.05, guard.reset).start()
            guard.ready_sync(20)
            guard.force_open()
            threading.Timer(0.05, guard.reset).start()
            thread = threading.Thread(target=lambda: asyncio.run(guard.wait_until_closed(20)))
            thread.start()
            thread.join()
            waits.cancel()

        in_child(child)
        assert not waits.done() and waiter.is_alive()
        guard.reset()
        await waits

    asyncio.run(main())
    waiter.join()
    """
    )


def test_the_interpreter_ends_while_breakers_are_waited_for() -> None:
    check(
        """
        import asyncio, threading, time
        from kailash.core.resilience.circuit_breaker import *
        guard = CircuitBreaker()
        guard.force_open()
        begun = []
        async def wait():
            begun.append(1)
            await guard.ready()
        def on_a_thread():
            begun.append(1)
            guard.wait_until_closed_sync()
        def again_and_again():
            begun.append(1)
            while True:
                try:
                    guard.ready_sync(0.001)
                except TimeoutError:
                    pass
        for target in (lambda: asyncio.run(wait()), on_a_thread, again_and_again):
            threading.Thread(target=target, daemon=True).start()
        while len(begun) < 3:
            time.sleep(0.001)
        time.sleep(0.05)
        """
    )


def test_the_interpreter_ends_while_a_thread_waits_in_a_queue() -> None:
    check(
        """
        import threading, time
        from kailash.core.resilience.bulkhead import *
        part = BulkheadPartition(PartitionConfig(
            "p", PartitionType.CUSTOM, max_concurrent_operations=1))
        part.acquire()
        threading.Thread(target=part(lambda: 1), daemon=True).start()
        while not part.metrics.queued_operations:
            time.sleep(0.001)
        """
    )


DAEMONS = {
    "sync": """
        @guard
        def work():
            time.sleep(0.002)
        def loop():
            while True:
                work()
        """,
    "async": """
        @guard
        async def work():
            sum(range(1000))
            await asyncio.sleep(0)
            time.sleep(0.001)
        def loop():
            async def main():
                while True:
                    await work()
            asyncio.run(main())
        """,
    "an awaitable from a plain function": """
        async def inner():
            time.sleep(0.001)
        @guard
        def work():
            return inner()
        def loop():
            async def main():
                while True:
                    await work()
            asyncio.run(main())
        """,
    "a coroutine that is thrown into and closed": """
        import types
        @types.coroutine
        def tick():
            while True:
                try:
                    yield
                except KeyError:
                    time.sleep(0.002)
                finally:
                    time.sleep(0.002)
        @guard
        async def work():
            await tick()
        def loop():
            while True:
                began = work()
                began.send(None)
                began.throw(KeyError())
                began.close()
                guard.record_success()
        """,
    "is_failure of results": """
        guard.reconfigure(is_failure=lambda result: time.sleep(0.002))
        def loop():
            while True:
                guard.call(int)
        """,
    "is_failure and retry_after of errors": """
        class Judged(Exception):
            pass
        guard.reconfigure(
            is_failure=lambda error: time.sleep(0.001) or True,
            retry_after=lambda error: time.sleep(0.001))
        guard.metrics_only()
        @guard
        def work():
            raise Judged
        def loop():
            while True:
                try:
                    work()
                except Judged:
                    pass
        """,
    "a block": """
        def loop():
            while True:
                with guard:
                    time.sleep(0.002)
        """,
    "a partition": """
        @part
        def work():
            time.sleep(0.002)
        def loop():
            while True:
                work()
        """,
    "a partition's queue across loops": """
        narrow = BulkheadPartition(PartitionConfig(
            "n", PartitionType.CUSTOM, max_concurrent_operations=1, queue_size=100, timeout=1000))
        @narrow
        async def work():
            await asyncio.sleep(0)
        def loop():
            async def one():
                while True:
                    await work()
                    guard.record_success()
            async def main():
                await asyncio.gather(one(), one())
            asyncio.run(main())
        """,
    "a partition, async": """
        @part
        async def work():
            time.sleep(0.002)
            await asyncio.sleep(0)
            time.sleep(0.002)
        def loop():
            async def main():
                while True:
                    await work()
            asyncio.run(main())
        """,
}


@pytest.mark.parametrize("kind", DAEMONS)
def test_the_interpreter_ends_while_daemon_threads_are_inside_guarded_calls(kind: str) -> None:
    begin = """
        import asyncio, threading, time
        from kailash.core.resilience.bulkhead import *
        from kailash.core.resilience.circuit_breaker import *
        guard = CircuitBreaker()
        part = BulkheadPartition(PartitionConfig(
            "p", PartitionType.CUSTOM, max_concurrent_operations=8))
        """
    end = """
        for _ in range(4):
            threading.Thread(target=loop, daemon=True).start()
        seen = lambda: guard.metrics.total_calls + part.metrics.total_operations
        while seen() < 20:
            time.sleep(0.001)
        """
    code = "".join(map(textwrap.dedent, (begin, DAEMONS[kind], end)))
    for _ in range(5):
        # What the threads would have done next is nobody's business; how the process ends is.
        assert check(code) == ""


def test_a_forked_child_has_breakers_that_only_rust_has_made_without_calls_in_flight() -> None:
    check(
        FORK
        + """
    from kailash.core.resilience import circuit_breaker
    from kailash.core.resilience.circuit_breaker import *
    config = CircuitBreakerConfig(
        failure_threshold=1, recovery_timeout=0.01, half_open_requests=1, success_threshold=1)
    made = get_circuit_breaker_manager()._native.get_or_create("of a workflow", config)
    made.record_failure()
    while made.state() != "half_open":
        time.sleep(0.001)
    probe = made.acquire()

    def child():
        guard = get_circuit_breaker("of a workflow")
        assert guard.call(lambda: 1) == 1
        assert guard.state is CircuitState.CLOSED

    in_child(child)
    try:
        get_circuit_breaker("of a workflow").call(lambda: 1)
        raise SystemExit("the probe's slot was free")
    except CircuitBreakerError:
        probe.success()
    """
    )


def test_a_wait_after_the_library_has_ended_is_answered() -> None:
    done = check(
        """
        import atexit

        def late():
            # Later versions of Python start no thread any more.
            for wait in (guard.ready_sync, guard.wait_until_closed_sync):
                try:
                    wait(0.01)
                except (TimeoutError, RuntimeError):
                    print("answered")
            for listen in (guard.add_listener, guard.subscribe):
                try:
                    listen(print)
                except RuntimeError:
                    pass
            print(guard.state.value)

        atexit.register(late)
        from kailash.core.resilience.circuit_breaker import CircuitBreaker

        guard = CircuitBreaker()
        guard.force_open()
        """
    )
    assert done.split() == ["answered", "answered", "open"]


def test_a_second_interpreter_is_refused_and_harms_the_first_in_nothing() -> None:
    done = check(
        """
        import importlib.util
        from kailash.core.resilience.circuit_breaker import CircuitBreaker, CircuitBreakerError

        names = "_interpreters", "_xxsubinterpreters"
        found = [name for name in names if importlib.util.find_spec(name)]
        interpreters = importlib.import_module(found[0])
        second = interpreters.create()
        interpreters.run_string(second, '''if True:
            try:
                import kailash.core.resilience.circuit_breaker
            except ImportError:
                print("refused", flush=True)
        ''')
        interpreters.destroy(second)
        guard = CircuitBreaker()
        guard.force_open()
        try:
            guard.call(int)
        except CircuitBreakerError:
            print("works")
        """
    )
    assert done.split() == ["refused", "works"]


def test_where_threading_starts_no_threads_waits_are_refused_and_calls_work() -> None:
    done = check(
        """
        import threading

        class Green(threading.Thread):
            # As patched by gevent: all runs on the thread that starts it.
            def start(self):
                self.run()

        threading.Thread = Green
        from kailash.core.resilience.circuit_breaker import CircuitBreaker

        guard = CircuitBreaker()
        print(guard.call(lambda: "called"))
        guard.force_open()
        for needs_threads in (guard.ready_sync, lambda: guard.subscribe(print)):
            try:
                needs_threads()
            except RuntimeError as error:
                print("threads of the system" in str(error))
        """
    )
    assert done.split() == ["called", "True", "True"]


def test_a_listener_that_no_thread_is_to_be_had_for_is_refused_and_a_later_one_is_told() -> None:
    done = check(
        """
        import threading

        class Refused(threading.Thread):
            def start(self):
                raise RuntimeError("can't start new thread")

        real, threading.Thread = threading.Thread, Refused
        from kailash.core.resilience.circuit_breaker import CircuitBreaker

        guard, told = CircuitBreaker(), threading.Event()
        for _ in range(2):
            try:
                guard.add_listener(lambda *news: print("never told", flush=True))
            except RuntimeError:
                print("refused", flush=True)
        threading.Thread = real
        guard.add_listener(lambda *news: told.set())
        guard.force_open()
        print(told.wait(30))
        """
    )
    assert done.split() == ["refused", "refused", "True"]
