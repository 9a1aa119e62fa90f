//! Calls of Python code on threads that Python itself may end within the call.
//!
//! CPython before 3.14 ends a daemon thread that wants the lock of an interpreter that has ended by
//! `pthread_exit`: it unwinds the thread's stack, and aborts the process where a frame of Rust
//! catches that, or was compiled for calls that never unwind. So what runs the code of users is
//! imported as able to unwind, and the thread is parked for ever where it does, as later versions
//! do.

#![expect(
    unsafe_code,
    reason = "the bindings import these functions as unable to unwind; python/tests/test_process.py"
)]

use std::hint::black_box;
use std::mem::{forget, transmute};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::iterator::PySendResult;
use pyo3::types::{PyBool, PyDict, PyString, PyTuple};

pub(crate) type Object = *mut ffi::PyObject;

// The bindings must not import these for this crate too: a symbol that is imported both ways counts
// as unable to unwind.
unsafe extern "C-unwind" {
    fn PyObject_Vectorcall(
        callable: Object,
        args: *const Object,
        count: usize,
        names: Object,
    ) -> Object;
    fn PyIter_Send(object: Object, value: Object, result: *mut Object) -> ffi::PySendResult;
    fn Py_DecRef(object: Object);
}

/// Parks for ever a thread that is unwound past it.
struct Parked;

impl Drop for Parked {
    fn drop(&mut self) {
        loop {
            std::thread::park();
        }
    }
}

#[inline]
fn parked_where_unwound<T>(call: impl FnOnce() -> T) -> T {
    let parked = Parked;
    let result = call();
    forget(parked);
    result
}

/// Calls `callable` as `PyObject_Vectorcall` does.
pub(crate) unsafe fn vectorcall(
    callable: Object,
    args: *const Object,
    count: usize,
    names: Object,
) -> Object {
    // SAFETY: the caller holds the lock and keeps all of these alive.
    parked_where_unwound(|| unsafe { PyObject_Vectorcall(callable, args, count, names) })
}

/// Calls `callable` with these arguments.
pub(crate) fn call_all<'py>(
    callable: &Bound<'py, PyAny>,
    args: &Bound<'py, PyTuple>,
    kwargs: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    let kwargs = kwargs.map_or(std::ptr::null_mut(), Bound::as_ptr);
    // SAFETY: the lock is held, and the references outlive the call.
    unsafe {
        let result = call_with(callable.as_ptr(), args.as_ptr(), kwargs);
        Bound::from_owned_ptr_or_err(callable.py(), result)
    }
}

/// Makes the first step of a coroutine: what it gave, or what it returned.
pub(crate) fn start<'py>(coroutine: &Bound<'py, PyAny>) -> PyResult<PySendResult<'py>> {
    let py = coroutine.py();
    let mut result = std::ptr::null_mut();
    // SAFETY: the lock is held; what comes out is owned, or null where an exception is raised.
    unsafe {
        let sent = send(coroutine.as_ptr(), py.None().as_ptr(), &raw mut result);
        let result = Bound::from_owned_ptr_or_err(py, result)?;
        Ok(match sent {
            ffi::PySendResult::PYGEN_RETURN => PySendResult::Return(result),
            _ => PySendResult::Next(result),
        })
    }
}

/// Calls `callable` with a tuple, and with a dict or null.
pub(crate) unsafe fn call_with(callable: Object, args: Object, kwargs: Object) -> Object {
    type Imported = unsafe extern "C" fn(Object, Object, Object) -> Object;
    type Unwinding = unsafe extern "C-unwind" fn(Object, Object, Object) -> Object;
    // The bindings import this one too, so the optimiser must not see which function it is.
    let imported: Imported = black_box(ffi::PyObject_Call);
    // SAFETY: both are the platform's C convention. The caller holds the lock and keeps all alive.
    parked_where_unwound(|| unsafe {
        transmute::<Imported, Unwinding>(imported)(callable, args, kwargs)
    })
}

/// Sends a value into a coroutine as `PyIter_Send` does.
pub(crate) unsafe fn send(
    coroutine: Object,
    value: Object,
    result: *mut Object,
) -> ffi::PySendResult {
    // SAFETY: the caller holds the lock and keeps all of these alive.
    parked_where_unwound(|| unsafe { PyIter_Send(coroutine, value, result) })
}

/// Gives up an owned reference, or null.
pub(crate) unsafe fn let_go(object: Object) {
    // SAFETY: the caller holds the lock and owns the reference.
    parked_where_unwound(|| unsafe { Py_DecRef(object) });
}

/// Calls `callable` with these arguments.
pub(crate) fn call<'py, const N: usize>(
    callable: &Bound<'py, PyAny>,
    args: [&Bound<'py, PyAny>; N],
) -> PyResult<Bound<'py, PyAny>> {
    let args = args.map(Bound::as_ptr);
    // SAFETY: the lock is held, and the references outlive the call.
    unsafe {
        let result = vectorcall(callable.as_ptr(), args.as_ptr(), N, std::ptr::null_mut());
        Bound::from_owned_ptr_or_err(callable.py(), result)
    }
}

/// Calls the method of this name with these arguments.
pub(crate) fn call_method<'py, const N: usize>(
    object: &Bound<'py, PyAny>,
    name: &Bound<'py, PyString>,
    args: [&Bound<'py, PyAny>; N],
) -> PyResult<Bound<'py, PyAny>> {
    call(&object.getattr(name)?, args)
}

/// Whether an answer of a user's counts as true.
pub(crate) fn is_true(answer: &Bound<'_, PyAny>) -> PyResult<bool> {
    if answer.is_exact_instance_of::<PyBool>() {
        return answer.is_truthy();
    }
    let bool_type = answer.py().get_type::<PyBool>();
    call(bool_type.as_any(), [answer])?.is_truthy()
}
