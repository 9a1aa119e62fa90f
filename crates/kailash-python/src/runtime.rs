//! The tokio runtime of this process, and the courier that carries its news to Python.
//!
//! Both are built when they are first needed. After a fork the child forgets its parent's, whose
//! threads did not come along, and builds its own.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use kailash::clock::{Clock, ManualClock as Hand};
use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict};
use tokio::runtime::{Handle, Runtime};
use tokio::task::AbortHandle;

use crate::calling;
use crate::config;

static PROCESS: ArcSwapOption<Process> = ArcSwapOption::const_empty();
static FORKS: AtomicU64 = AtomicU64::new(0);
/// Whether the interpreter is ending, so that nothing must wait for Python's lock any more.
static IS_ENDING: AtomicBool = AtomicBool::new(false);

// How often a thread that waits for Rust looks whether the user pressed Ctrl-C.
const SIGNAL_CHECK: Duration = Duration::from_millis(50);

// How long the end of the interpreter waits for threads that are busy.
const PATIENCE: Duration = Duration::from_secs(1);

type Errand = Box<dyn FnOnce(Python<'_>) + Send>;

enum Parcel {
    Errand(Errand),
    Stop,
}

struct Process {
    runtime: Mutex<Option<Runtime>>,
    handle: Handle,
    courier: Sender<Parcel>,
    waiting: Mutex<Option<Receiver<Parcel>>>,
    thread: Mutex<Option<Py<PyAny>>>,
}

impl Process {
    fn new() -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("kailash-tokio")
            .enable_all()
            .build()?;
        let (courier, waiting) = channel();
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Mutex::new(Some(runtime)),
            courier,
            waiting: Mutex::new(Some(waiting)),
            thread: Mutex::new(None),
        })
    }

    /// Starts the courier as a Python thread, so that it keeps its thread state between errands.
    fn start_courier(&self, py: Python<'_>) -> PyResult<()> {
        let Some(waiting) = lock(&self.waiting).take() else {
            return Ok(());
        };
        let settings = PyDict::new(py);
        let courier = Bound::new(
            py,
            Courier {
                waiting: Mutex::new(waiting),
                starter: thread::current().id(),
                is_green: AtomicBool::new(false),
            },
        )?;
        settings.set_item("target", courier.getattr("run")?)?;
        settings.set_item("name", "kailash-courier")?;
        settings.set_item("daemon", true)?;
        let thread = py
            .import("threading")?
            .getattr("Thread")?
            .call((), Some(&settings))?;
        thread.call_method0("start")?;
        if courier.get().is_green.load(Ordering::Acquire) {
            let message = "kailash needs threads of the system here, and `threading` starts others";
            return Err(PyRuntimeError::new_err(message));
        }
        *lock(&self.thread) = Some(thread.unbind());
        Ok(())
    }

    /// Ends the runtime, without waiting for its threads.
    fn end(&self) {
        if let Some(runtime) = lock(&self.runtime).take() {
            runtime.shutdown_background();
        }
    }
}

/// # Errors
/// `RuntimeError` if no threads are to be had: there are too many, the interpreter is ending, or
/// `threading` was patched to start none of the system's.
fn process() -> PyResult<Arc<Process>> {
    if let Some(process) = &*PROCESS.load() {
        return Ok(Arc::clone(process));
    }
    let built = Process::new().map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
    let built = Arc::new(built);
    let before = PROCESS.compare_and_swap(&None::<Arc<Process>>, Some(Arc::clone(&built)));
    match &*before {
        // Another thread was faster; what this one built ends here.
        Some(winner) => {
            built.end();
            Ok(Arc::clone(winner))
        }
        None => match Python::try_attach(|py| built.start_courier(py)) {
            Some(Err(error)) => {
                // Without a courier nothing would ever be heard of it.
                PROCESS.compare_and_swap(&built, None);
                built.end();
                Err(error)
            }
            _ => Ok(built),
        },
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The runtime of this process.
///
/// # Errors
/// `RuntimeError` if it is not there yet and no threads are to be had for it.
pub(crate) fn handle() -> PyResult<Handle> {
    Ok(process()?.handle.clone())
}

/// How many forks lie between this process and the one that first loaded the library.
pub(crate) fn generation() -> u64 {
    FORKS.load(Ordering::Acquire)
}

thread_local! {
    /// Whether this is the thread that ends the interpreter.
    static ENDS_IT: Cell<bool> = const { Cell::new(false) };
}

/// Keeps a thread that has let go of Python's lock from asking for it in an interpreter that ends.
pub(crate) fn stay_away_at_the_end() {
    while IS_ENDING.load(Ordering::Acquire) && !ENDS_IT.get() {
        thread::park();
    }
}

thread_local! {
    /// Errands of a thread that holds Python's lock anyway, inside [`attached`].
    static AT_HAND: RefCell<Option<Vec<Errand>>> = const { RefCell::new(None) };
}

/// Runs `work`, then the errands that it delivered, on this thread instead of the courier's.
pub(crate) fn attached<T>(py: Python<'_>, work: impl FnOnce() -> T) -> T {
    let outer = AT_HAND.replace(Some(Vec::new()));
    let result = work();
    // Errands may deliver more; run inside one another, they could be too many for the stack.
    while let Some(errands) = AT_HAND.with_borrow_mut(|at_hand| {
        let errands = at_hand.as_mut().map(std::mem::take);
        errands.filter(|errands| !errands.is_empty())
    }) {
        for errand in errands {
            errand(py);
        }
    }
    AT_HAND.set(outer);
    result
}

/// Hands a piece of work that needs Python's lock to the courier. Never blocks.
pub(crate) fn deliver(errand: impl FnOnce(Python<'_>) + Send + 'static) {
    let errand: Errand = Box::new(errand);
    let at_hand = AT_HAND.with_borrow_mut(|at_hand| match at_hand {
        Some(errands) => {
            errands.push(errand);
            None
        }
        None => Some(errand),
    });
    let Some(errand) = at_hand else { return };
    match &*PROCESS.load() {
        // A courier that has stopped leaves it undone: the interpreter is going away.
        Some(process) => drop(process.courier.send(Parcel::Errand(errand))),
        None if IS_ENDING.load(Ordering::Acquire) => std::mem::forget(errand),
        // Nothing of ours runs yet, so this is a thread of Python's.
        None => drop(Python::try_attach(|py| attached(py, || errand(py)))),
    }
}

/// A Python object that lives inside Rust work, and dies on the courier's thread.
pub(crate) struct Carried(Option<Py<PyAny>>);

impl Carried {
    pub(crate) fn new(object: Py<PyAny>) -> Self {
        Self(Some(object))
    }

    pub(crate) fn get(&self) -> &Py<PyAny> {
        self.0
            .as_ref()
            .expect("present until it is taken or dropped")
    }

    pub(crate) fn into_inner(mut self) -> Py<PyAny> {
        self.0.take().expect("taken once")
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            deliver(move |_| drop(object));
        }
    }
}

/// Runs `work` on the runtime and waits for it with Python's lock released.
///
/// # Errors
/// What a signal handler raised meanwhile (the work is then aborted), that the work panicked, or
/// that there are no threads for it.
pub(crate) fn wait<T, F>(py: Python<'_>, work: F) -> PyResult<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let (answer, answered) = sync_channel(1);
    let task = handle()?.spawn(async move {
        drop(answer.send(work.await));
    });
    let answered = Mutex::new(answered);
    loop {
        let next = py.detach(|| {
            let next = lock(&answered).recv_timeout(SIGNAL_CHECK);
            stay_away_at_the_end();
            next
        });
        match next {
            Ok(value) => return Ok(value),
            Err(RecvTimeoutError::Disconnected) => return Err(ended()),
            Err(RecvTimeoutError::Timeout) => {
                if let Err(raised) = py.check_signals() {
                    task.abort();
                    return Err(raised);
                }
            }
        }
    }
}

fn ended() -> PyErr {
    PyRuntimeError::new_err("the work ended without an answer")
}

/// Runs `work` on the runtime and answers an asyncio future of the running loop for it.
///
/// `read` turns what came out into a Python value. Cancelling the future aborts the work.
pub(crate) fn promise<'py, T, F, R>(
    py: Python<'py>,
    work: F,
    read: R,
) -> PyResult<Bound<'py, PyAny>>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
    R: FnOnce(Python<'_>, T) -> PyResult<Py<PyAny>> + Send + 'static,
{
    let event_loop = py.import("asyncio")?.call_method0("get_running_loop")?;
    let future = event_loop.call_method0("create_future")?;
    let runtime = handle()?;
    let task = runtime.spawn(work);
    let abort = task.abort_handle();
    let on_done = PyCFunction::new_closure(py, None, None, move |_, _| abort.abort())?;
    future.call_method1("add_done_callback", (on_done,))?;
    let (to, event_loop) = (
        Carried::new(future.clone().unbind()),
        Carried::new(event_loop.unbind()),
    );
    runtime.spawn(async move {
        let answer = task.await;
        deliver(move |py| {
            let (value, error) = match answer
                .map_err(|_| ended())
                .and_then(|value| read(py, value))
            {
                Ok(value) => (value, py.None()),
                Err(error) => (py.None(), error.into_value(py).into_any()),
            };
            settle_soon(py, &event_loop.into_inner(), to.into_inner(), value, error);
        });
    });
    Ok(future)
}

/// Has a loop settle one of its futures: see [`settle`].
pub(crate) fn settle_soon(
    py: Python<'_>,
    event_loop: &Py<PyAny>,
    future: Py<PyAny>,
    value: Py<PyAny>,
    error: Py<PyAny>,
) {
    let settled = settle_function(py).and_then(|settle| {
        let name = intern!(py, "call_soon_threadsafe");
        event_loop.call_method1(py, name, (settle, future, value, error))
    });
    // A loop that has closed has nobody waiting on it.
    drop(settled);
}

/// Work on the runtime that is given up when this is dropped.
pub(crate) struct Task {
    abort: AbortHandle,
    generation: u64,
}

impl Task {
    pub(crate) fn spawn(work: impl Future<Output = ()> + Send + 'static) -> PyResult<Self> {
        Ok(Self {
            abort: handle()?.spawn(work).abort_handle(),
            generation: generation(),
        })
    }

    pub(crate) fn give_up(&self) {
        // After a fork it is the parent's, and so is what would end it.
        if self.generation == generation() {
            self.abort.abort();
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// The function that settles a future: see [`settle`].
pub(crate) fn settle_function(py: Python<'_>) -> PyResult<Py<PyAny>> {
    static SETTLE: pyo3::sync::PyOnceLock<Py<PyAny>> = pyo3::sync::PyOnceLock::new();
    let settle = SETTLE.get_or_try_init(py, || {
        pyo3::wrap_pyfunction!(settle, py).map(|function| function.into_any().unbind())
    })?;
    Ok(settle.clone_ref(py))
}

/// Gives a future its result or its exception, unless it was cancelled meanwhile.
#[pyfunction]
fn settle(future: &Bound<'_, PyAny>, value: Py<PyAny>, error: Py<PyAny>) -> PyResult<()> {
    let py = future.py();
    if calling::is_true(&calling::call_method(future, intern!(py, "done"), [])?)? {
        return Ok(());
    }
    if error.is_none(py) {
        calling::call_method(future, intern!(py, "set_result"), [value.bind(py)])?;
    } else {
        calling::call_method(future, intern!(py, "set_exception"), [error.bind(py)])?;
    }
    Ok(())
}

/// A clock that stands still until it is advanced, for tests.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct ManualClock {
    clock: Clock,
    hand: Hand,
}

#[pymethods]
impl ManualClock {
    #[new]
    fn new() -> Self {
        let (clock, hand) = Clock::manual();
        Self { clock, hand }
    }

    /// Moves the clock forward by so many seconds.
    fn advance(&self, seconds: &Bound<'_, PyAny>) -> PyResult<()> {
        self.hand.advance(config::seconds("seconds", seconds)?);
        Ok(())
    }
}

/// The clock to use: a manual one, or the machine's.
pub(crate) fn clock(manual: Option<&ManualClock>) -> Clock {
    manual.map_or_else(Clock::monotonic, |manual| manual.clock.clone())
}

/// The body of the courier's thread: a Python thread that runs what Rust wants done in Python.
#[pyclass(frozen, module = "kailash._native")]
pub(crate) struct Courier {
    waiting: Mutex<Receiver<Parcel>>,
    starter: ThreadId,
    /// Whether it was run on the thread that started it, as gevent and its like have it: to wait
    /// there would stop all that runs on it.
    is_green: AtomicBool,
}

#[pymethods]
impl Courier {
    /// Carries until it is told to stop.
    fn run(&self, py: Python<'_>) {
        if thread::current().id() == self.starter {
            self.is_green.store(true, Ordering::Release);
            return;
        }
        while let Ok(Parcel::Errand(errand)) = py.detach(|| lock(&self.waiting).recv()) {
            errand(py);
        }
    }
}

/// Ends the runtime's threads and the courier, as the interpreter ends.
#[pyfunction]
pub(crate) fn shut_down(py: Python<'_>) -> PyResult<()> {
    ENDS_IT.set(true);
    IS_ENDING.store(true, Ordering::Release);
    let Some(process) = PROCESS.load_full() else {
        return Ok(());
    };
    if let Some(runtime) = lock(&process.runtime).take() {
        py.detach(|| runtime.shutdown_timeout(PATIENCE));
    }
    drop(process.courier.send(Parcel::Stop));
    if let Some(thread) = lock(&process.thread).take() {
        thread.call_method1(py, "join", (PATIENCE.as_secs_f64(),))?;
    }
    PROCESS.store(None);
    Ok(())
}

/// Forgets the parent's runtime in a forked child.
#[pyfunction]
pub(crate) fn after_fork_in_child() {
    FORKS.fetch_add(1, Ordering::AcqRel);
    IS_ENDING.store(false, Ordering::Release);
    // Not dropped: its threads are the parent's, and to wait for them would be for ever.
    std::mem::forget(PROCESS.swap(None));
}
