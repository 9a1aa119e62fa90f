//! What a decorated function becomes: a callable, and the coroutines it makes if it is async.
//!
//! Both are written against the C API, because no safe binding offers what makes them as fast as
//! they are: a callable that binds as a method without an object per call, and a coroutine that
//! hands its result over without a `StopIteration`. They keep to the stable ABI, and use vectorcall
//! as it stands in CPython 3.11, which made it stable a version later.
//!
//! What makes it sound: every slot runs with Python's lock; an object is built whole before anyone
//! can see it, and never by Python (`DISALLOW_INSTANTIATION`); each pointer field owns one
//! reference or is null; and no reference into an object is kept across a call into Python, except
//! to its breaker, which lives as long as the object. Neither type needs `tp_clear`: what an object
//! points to is older than itself, or is a coroutine, which the collector ends first; so each cycle
//! has another member that breaks it.

#![expect(
    unsafe_code,
    reason = "types made by hand against Python's C API; python/tests holds them to their promises"
)]

use std::ffi::{CStr, c_int, c_ulong, c_void};
use std::mem::{offset_of, size_of};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{self, null_mut};
use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, Ordering};

use kailash::circuit_breaker::{Outcome, Permit, Rejected};
use pyo3::exceptions::{PyRuntimeError, PyStopIteration};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyTuple, PyType};
use pyo3::{ffi, intern};

use super::{CircuitBreaker, CircuitBreakerPermit, rejection};
use crate::calling::{self, Object};
use crate::runtime;

type Vectorcall = unsafe extern "C" fn(Object, *const Object, usize, Object) -> Object;

const HAVE_VECTORCALL: c_ulong = 1 << 11;

unsafe extern "C" {
    fn PyVectorcall_Call(callable: Object, args: Object, kwargs: Object) -> Object;
}

static FUNCTION: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static COROUTINE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static METHOD: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static PLAIN_FUNCTION: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static STOP: PyOnceLock<Stop> = PyOnceLock::new();

/// Makes the two types and puts them into the module.
pub(crate) fn add_types(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let types = py.import("types")?;
    let method = types.getattr("MethodType")?.cast_into::<PyType>()?;
    METHOD.get_or_init(py, || method.unbind());
    let plain = types.getattr("FunctionType")?.cast_into::<PyType>()?;
    PLAIN_FUNCTION.get_or_init(py, || plain.unbind());
    let stop = Stop::new(&py.get_type::<PyStopIteration>())?;
    STOP.get_or_init(py, || stop);
    for (cell, made) in [
        (&FUNCTION, function_type(py)?),
        (&COROUTINE, coroutine_type(py)?),
    ] {
        module.add(made.name()?, &made)?;
        cell.get_or_init(py, || made.unbind());
    }
    Ok(())
}

/// A function that is called through a breaker.
///
/// `owner` is the breaker that users see. It is kept alive, and asked to judge what is still to be
/// awaited. An async function must give a coroutine that nobody else has. `asked` is what users know
/// the function as, of which its attributes are.
#[pyfunction]
pub(crate) fn guard(
    py: Python<'_>,
    function: Py<PyAny>,
    asked: Py<PyAny>,
    breaker: Py<CircuitBreaker>,
    owner: Py<PyAny>,
    is_async: bool,
) -> PyResult<Py<PyAny>> {
    let class = type_of(py, &FUNCTION);
    // SAFETY: the type's basicsize is that of `Function`, and all fields are written before the
    // object is seen.
    unsafe {
        let object = ffi::PyType_GenericAlloc(class, 0);
        if object.is_null() {
            return Err(PyErr::fetch(py));
        }
        let this = object.cast::<Function>();
        (*this).function = function.into_ptr();
        (*this).asked = asked.into_ptr();
        (*this).breaker = breaker.into_ptr();
        (*this).owner = owner.into_ptr();
        (*this).vectorcall = Some(if is_async {
            function_begin
        } else {
            function_vectorcall
        });
        Ok(Bound::from_owned_ptr(py, object).unbind())
    }
}

/// Runs `work` as the body of an `except` clause runs: `error` is the exception being handled.
pub(super) fn handling<T>(error: &Bound<'_, PyAny>, work: impl FnOnce() -> T) -> T {
    // SAFETY: the lock is held, as `error` proves; what was handled before is put back.
    unsafe {
        let before = ffi::PyErr_GetHandledException();
        ffi::PyErr_SetHandledException(error.as_ptr());
        let result = work();
        ffi::PyErr_SetHandledException(before);
        ffi::Py_XDECREF(before);
        result
    }
}

fn type_of(py: Python<'_>, cell: &PyOnceLock<Py<PyType>>) -> *mut ffi::PyTypeObject {
    let made = cell.get(py).expect("made when the module was");
    made.as_ptr().cast()
}

/// A panic must not unwind into Python.
fn shielded<T>(failed: T, work: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        raise(Kind::System, c"a circuit breaker panicked");
        failed
    })
}

#[derive(Clone, Copy)]
enum Kind {
    Runtime,
    System,
    Type,
    Value,
}

fn raise(kind: Kind, message: &CStr) {
    // SAFETY: called from slots only, which hold the lock.
    unsafe {
        let kind = match kind {
            Kind::Runtime => ffi::PyExc_RuntimeError,
            Kind::System => ffi::PyExc_SystemError,
            Kind::Type => ffi::PyExc_TypeError,
            Kind::Value => ffi::PyExc_ValueError,
        };
        ffi::PyErr_SetString(kind, message.as_ptr());
    }
}

/// Gives up one owned reference, leaving null before anything else can run.
unsafe fn clear(field: *mut Object) {
    // SAFETY: the caller passes a field that owns a reference or is null.
    unsafe {
        calling::let_go(field.replace(null_mut()));
    }
}

unsafe fn visit(fields: &[Object], visitor: ffi::visitproc, argument: *mut c_void) -> c_int {
    for &field in fields.iter().filter(|field| !field.is_null()) {
        // SAFETY: the collector's own visitor, on references that the object owns.
        let stop = unsafe { visitor(field, argument) };
        if stop != 0 {
            return stop;
        }
    }
    0
}

/// Judges the exception that is raised now; what the judge raises takes its place.
fn judge_raised(py: Python<'_>, breaker: &CircuitBreaker) -> Outcome {
    // SAFETY: the lock is held, and what is raised has a class; classes are compared, which runs no
    // Python.
    let by_class = unsafe {
        let raised = ffi::PyErr_Occurred().cast();
        let is = |class: Object| ffi::PyType_IsSubtype(raised, class.cast()) != 0;
        breaker.judge().class(
            is(ffi::PyExc_Exception),
            |classes| ffi::PyErr_ExceptionMatches(classes) != 0,
            || is(ffi::PyExc_BaseExceptionGroup),
        )
    };
    if let Some(outcome) = by_class {
        return outcome;
    }
    let Some(error) = PyErr::take(py) else {
        return Outcome::Failure;
    };
    if let Some(traceback) = error.traceback(py) {
        // As an `except` clause does it: before it, the exception itself does not know.
        // SAFETY: the lock is held.
        unsafe { ffi::PyException_SetTraceback(error.value(py).as_ptr(), traceback.as_ptr()) };
    }
    let (outcome, judged) = breaker.judge().error(error.value(py));
    judged.err().unwrap_or(error).restore(py);
    outcome
}

/// What a judge raised, as a coroutine may raise it: a `StopIteration` would say that it returned,
/// and a task that sees one as an error never ends.
fn no_stop(py: Python<'_>, raised: PyErr) -> PyErr {
    if !raised.is_instance_of::<PyStopIteration>(py) {
        return raised;
    }
    let error = PyRuntimeError::new_err("coroutine raised StopIteration");
    error.set_cause(py, Some(raised));
    error
}

#[repr(C)]
struct Function {
    head: ffi::PyObject,
    function: Object,
    /// The callable that the function calls, or the function again.
    asked: Object,
    breaker: Object,
    owner: Object,
    /// What users and `functools.update_wrapper` set on it.
    attributes: Object,
    weak_references: Object,
    vectorcall: Option<Vectorcall>,
}

impl Function {
    /// Its breaker, which lives as long as the function.
    unsafe fn breaker<'a>(this: *mut Self) -> &'a CircuitBreaker {
        // SAFETY: `guard` put a breaker there, nothing replaces it, and every caller has a
        // reference to the function; a frozen class is only ever borrowed shared.
        unsafe {
            let object = Bound::from_borrowed_ptr(attached(), (*this).breaker);
            let breaker: *const CircuitBreaker = object.cast_unchecked::<CircuitBreaker>().get();
            &*breaker
        }
    }
}

/// The lock that every slot is called with.
unsafe fn attached<'py>() -> Python<'py> {
    // SAFETY: the caller is a slot.
    unsafe { Python::assume_attached() }
}

/// Calls a function that is not async.
unsafe extern "C" fn function_vectorcall(
    slf: Object,
    args: *const Object,
    count: usize,
    names: Object,
) -> Object {
    // SAFETY: Python calls it on an object of this type, and keeps all alive meanwhile.
    shielded(null_mut(), || unsafe {
        call(slf.cast(), args, count, names)
    })
}

/// Calls an async function: what it gives begins when it is first awaited.
unsafe extern "C" fn function_begin(
    slf: Object,
    args: *const Object,
    count: usize,
    names: Object,
) -> Object {
    // SAFETY: as above.
    unsafe {
        let inner = calling::vectorcall((*slf.cast::<Function>()).function, args, count, names);
        if inner.is_null() {
            return inner;
        }
        new_coroutine(slf, inner)
    }
}

unsafe fn call(this: *mut Function, args: *const Object, count: usize, names: Object) -> Object {
    // SAFETY: as in `function_vectorcall`; the arguments are passed on as they came.
    unsafe {
        let py = attached();
        let breaker = Function::breaker(this);
        let permit = match breaker.breaker.try_acquire().and_then(Permit::watched) {
            Ok(permit) => permit,
            Err(rejected) => {
                reject(py, &rejected);
                return null_mut();
            }
        };
        let generation = runtime::generation();
        let result = calling::vectorcall((*this).function, args, count, names);
        let (outcome, judged) = match Bound::from_owned_ptr_or_opt(py, result) {
            None => (judge_raised(py, breaker), None),
            Some(result) if is_awaitable(&result) => {
                let breaker = Bound::from_borrowed_ptr(py, (*this).breaker);
                let permit = CircuitBreakerPermit {
                    permit: Mutex::new(Some(permit.into_owned())),
                    breaker: breaker.cast_unchecked().clone().unbind(),
                    generation,
                };
                let owner = Bound::from_borrowed_ptr(py, (*this).owner);
                let judged = Bound::new(py, permit).and_then(|permit| {
                    let judge = owner.getattr(intern!(py, "_judge_at_its_end"))?;
                    calling::call(&judge, [permit.as_any(), &result])
                });
                return hand_over(py, judged);
            }
            Some(result) => {
                let (outcome, judged) = breaker.judge().result(&result);
                (outcome, Some(judged.map(|()| result)))
            }
        };
        breaker.record(permit, generation, outcome);
        judged.map_or(null_mut(), |judged| hand_over(py, judged))
    }
}

/// Raises a refusal as a `raise` statement does, with what is being handled as its context.
#[cold]
fn reject(py: Python<'_>, rejected: &Rejected) {
    match rejection(py, rejected) {
        // SAFETY: the lock is held.
        Ok(error) => unsafe {
            ffi::PyErr_SetObject(ffi::Py_TYPE(error.as_ptr()).cast(), error.as_ptr());
        },
        Err(failed) => failed.restore(py),
    }
}

fn hand_over(py: Python<'_>, result: PyResult<Bound<'_, PyAny>>) -> Object {
    match result {
        Ok(result) => result.into_ptr(),
        Err(error) => {
            error.restore(py);
            null_mut()
        }
    }
}

fn is_awaitable(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: a type's slots may be read while it lives.
    unsafe { !ffi::PyType_GetSlot(object.get_type_ptr(), ffi::Py_am_await).is_null() }
}

unsafe extern "C" fn function_bind(slf: Object, object: Object, _class: Object) -> Object {
    // SAFETY: called by Python, with an object or null.
    unsafe {
        if object.is_null() || object == ffi::Py_None() {
            return ffi::Py_NewRef(slf);
        }
        let method = type_of(attached(), &METHOD);
        let none = null_mut::<ffi::PyObject>();
        ffi::PyObject_CallFunctionObjArgs(method.cast(), slf, object, none)
    }
}

/// What it does not have itself it has from its function, or from what that stands for.
unsafe extern "C" fn function_attribute(slf: Object, name: Object) -> Object {
    // SAFETY: called by Python, on an object of this type.
    unsafe {
        let is_missing = |found: Object| {
            found.is_null() && ffi::PyErr_ExceptionMatches(ffi::PyExc_AttributeError) != 0
        };
        let own = ffi::PyObject_GenericGetAttr(slf, name);
        if !is_missing(own) {
            return own;
        }
        ffi::PyErr_Clear();
        let this = slf.cast::<Function>();
        let found = ffi::PyObject_GetAttr((*this).function, name);
        if (*this).asked == (*this).function || !is_missing(found) {
            return found;
        }
        ffi::PyErr_Clear();
        ffi::PyObject_GetAttr((*this).asked, name)
    }
}

/// `isinstance` and `inspect` take it for the function that it stands for, if it is one: frameworks
/// that know functions and methods alone take any other callable apart.
unsafe extern "C" fn function_class(slf: Object, _: *mut c_void) -> Object {
    // SAFETY: called by Python, on an object of this type.
    unsafe {
        let plain = type_of(attached(), &PLAIN_FUNCTION).cast();
        match ffi::PyObject_IsInstance((*slf.cast::<Function>()).function, plain) {
            0 => ffi::Py_NewRef(ffi::Py_TYPE(slf).cast()),
            1 => ffi::Py_NewRef(plain),
            _ => null_mut(),
        }
    }
}

/// What its function closes over, and its breaker: who takes it apart to make another of its code
/// finds that it needs one, and who sends it to another process that a breaker cannot be sent.
unsafe extern "C" fn function_closure(slf: Object, _: *mut c_void) -> Object {
    // SAFETY: called by Python, on an object of this type.
    unsafe {
        let py = attached();
        let this = slf.cast::<Function>();
        let function = Bound::from_borrowed_ptr(py, (*this).function);
        let owner = Bound::from_borrowed_ptr(py, (*this).owner);
        hand_over(py, closure(&function, &owner))
    }
}

fn closure<'py>(
    function: &Bound<'py, PyAny>,
    owner: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = function.py();
    let closure = function.getattr(intern!(py, "__closure__"))?;
    let cell = py.import("types")?.getattr("CellType")?.call1((owner,))?;
    let ours = PyTuple::new(py, [cell])?;
    if closure.is_none() {
        return Ok(ours.into_any());
    }
    match closure.cast::<PyTuple>() {
        Ok(cells) => cells.add(ours),
        // A mock of a function has anything there.
        Err(_) => Ok(closure),
    }
}

unsafe extern "C" fn function_repr(slf: Object) -> Object {
    // SAFETY: called by Python, on an object of this type.
    unsafe {
        let asked = (*slf.cast::<Function>()).asked;
        ffi::PyUnicode_FromFormat(c"<guarded %R>".as_ptr(), asked)
    }
}

/// Pickled and copied as functions are: by name, so that a copy is itself. What has none can be
/// copied too, and is nowhere to be found for pickle.
unsafe extern "C" fn function_reduce(slf: Object, _: Object) -> Object {
    // SAFETY: called by Python, on an object of this type.
    unsafe {
        let name = ffi::PyObject_GetAttrString(slf, c"__qualname__".as_ptr());
        if !name.is_null() || ffi::PyErr_ExceptionMatches(ffi::PyExc_AttributeError) == 0 {
            return name;
        }
        ffi::PyErr_Clear();
        ffi::PyObject_Repr(slf)
    }
}

unsafe extern "C" fn function_traverse(
    slf: Object,
    visitor: ffi::visitproc,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: called by the collector, on an object of this type.
    unsafe {
        let class = ffi::Py_TYPE(slf).cast();
        let this = &*slf.cast::<Function>();
        let fields = [
            class,
            this.function,
            this.asked,
            this.breaker,
            this.owner,
            this.attributes,
        ];
        visit(&fields, visitor, argument)
    }
}

unsafe extern "C" fn function_free(slf: Object) {
    // SAFETY: called by Python once nobody has a reference to it.
    unsafe {
        ffi::PyObject_GC_UnTrack(slf.cast());
        let this = slf.cast::<Function>();
        if !(*this).weak_references.is_null() {
            ffi::PyObject_ClearWeakRefs(slf);
        }
        for field in [
            &raw mut (*this).function,
            &raw mut (*this).asked,
            &raw mut (*this).breaker,
            &raw mut (*this).owner,
            &raw mut (*this).attributes,
        ] {
            clear(field);
        }
        free(slf);
    }
}

unsafe fn free(slf: Object) {
    // SAFETY: the object owns nothing any more but its memory and a reference to its type.
    unsafe {
        let class = ffi::Py_TYPE(slf);
        ffi::PyObject_GC_Del(slf.cast());
        ffi::Py_DECREF(class.cast());
    }
}

fn function_type(py: Python<'_>) -> PyResult<Bound<'_, PyType>> {
    let members = [
        offset(c"__dictoffset__", offset_of!(Function, attributes)),
        offset(c"__weaklistoffset__", offset_of!(Function, weak_references)),
        offset(c"__vectorcalloffset__", offset_of!(Function, vectorcall)),
        ffi::PyMemberDef::default(),
    ];
    let methods = [
        method(c"__reduce__", ffi::METH_NOARGS, function_reduce),
        ffi::PyMethodDef::zeroed(),
    ];
    let properties = [
        ffi::PyGetSetDef {
            name: c"__dict__".as_ptr(),
            get: Some(ffi::PyObject_GenericGetDict),
            set: Some(ffi::PyObject_GenericSetDict),
            ..ffi::PyGetSetDef::default()
        },
        ffi::PyGetSetDef {
            name: c"__closure__".as_ptr(),
            get: Some(function_closure),
            ..ffi::PyGetSetDef::default()
        },
        ffi::PyGetSetDef {
            name: c"__class__".as_ptr(),
            get: Some(function_class),
            ..ffi::PyGetSetDef::default()
        },
        ffi::PyGetSetDef::default(),
    ];
    let slots = vec![
        slot(ffi::Py_tp_call, PyVectorcall_Call as *mut c_void),
        slot(ffi::Py_tp_descr_get, function_bind as *mut c_void),
        slot(ffi::Py_tp_getattro, function_attribute as *mut c_void),
        slot(ffi::Py_tp_repr, function_repr as *mut c_void),
        slot(ffi::Py_tp_traverse, function_traverse as *mut c_void),
        slot(ffi::Py_tp_dealloc, function_free as *mut c_void),
        slot(ffi::Py_tp_members, kept(members)),
        slot(ffi::Py_tp_methods, kept(methods)),
        slot(ffi::Py_tp_getset, kept(properties)),
    ];
    let flags = ffi::Py_TPFLAGS_METHOD_DESCRIPTOR | HAVE_VECTORCALL;
    new_type::<Function>(py, c"kailash._native.GuardedFunction", flags, slots)
}

/// A call of an async function, which begins when it is first awaited.
#[repr(C)]
struct Coroutine {
    head: ffi::PyObject,
    /// The [`Function`] that was called.
    function: Object,
    /// The coroutine of the function within, until it ends.
    inner: Object,
    /// The `StopIteration` that carried its result.
    stop: Object,
    weak_references: Object,
    stage: Stage,
    /// Borrows the function's breaker.
    permit: Option<Permit<'static>>,
    generation: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Created,
    Running,
    Suspended,
    Ended,
}

/// Takes `inner`, a coroutine that nobody else has.
unsafe fn new_coroutine(function: Object, inner: Object) -> Object {
    // SAFETY: the type's basicsize is that of `Coroutine`; what was allocated as zeroes is written
    // before anyone sees it, without dropping what was never there.
    unsafe {
        let object = ffi::PyType_GenericAlloc(type_of(attached(), &COROUTINE), 0);
        if object.is_null() {
            ffi::Py_DECREF(inner);
            return object;
        }
        let this = object.cast::<Coroutine>();
        (*this).function = ffi::Py_NewRef(function);
        (*this).inner = inner;
        (&raw mut (*this).stage).write(Stage::Created);
        (&raw mut (*this).permit).write(None);
        object
    }
}

impl Coroutine {
    unsafe fn breaker<'a>(this: *mut Self) -> &'a CircuitBreaker {
        // SAFETY: the function is let go only when the coroutine is freed, after its permit.
        unsafe { Function::breaker((*this).function.cast()) }
    }

    /// Asks the breaker for leave.
    unsafe fn begin(this: *mut Self) -> bool {
        // SAFETY: as in `send`.
        unsafe {
            let breaker = &Self::breaker(this).breaker;
            match breaker.try_acquire().and_then(Permit::watched) {
                Ok(permit) => {
                    (*this).permit = Some(permit);
                    (*this).generation = runtime::generation();
                    true
                }
                Err(rejected) => {
                    // It has not begun, so this runs none of its code.
                    let close = intern!(attached(), "close").as_ptr();
                    let none = null_mut::<ffi::PyObject>();
                    let closed = ffi::PyObject_CallMethodObjArgs((*this).inner, close, none);
                    if !closed.is_null() {
                        ffi::Py_DECREF(closed);
                        reject(attached(), &rejected);
                    }
                    false
                }
            }
        }
    }

    /// Sends a value in, and judges the call if it ends by that.
    unsafe fn send(this: *mut Self, value: Object, result: *mut Object) -> ffi::PySendResult {
        // SAFETY: the stage is `Running` while anything else can run, so that nothing touches the
        // fields meanwhile; who sends holds a reference to this object.
        unsafe {
            *result = null_mut();
            match (*this).stage {
                Stage::Suspended => (*this).stage = Stage::Running,
                Stage::Created if value != ffi::Py_None() => {
                    let message = c"can't send non-None value to a just-started coroutine";
                    raise(Kind::Type, message);
                    return ffi::PySendResult::PYGEN_ERROR;
                }
                Stage::Created => {
                    (*this).stage = Stage::Running;
                    if !Self::begin(this) {
                        Self::end_with_error(this);
                        return ffi::PySendResult::PYGEN_ERROR;
                    }
                }
                Stage::Running | Stage::Ended => {
                    Self::refuse(this);
                    return ffi::PySendResult::PYGEN_ERROR;
                }
            }
            let sent = calling::send((*this).inner, value, result);
            match sent {
                ffi::PySendResult::PYGEN_NEXT => (*this).stage = Stage::Suspended,
                ffi::PySendResult::PYGEN_ERROR => Self::end_with_error(this),
                ffi::PySendResult::PYGEN_RETURN => {
                    let value = Bound::from_borrowed_ptr(attached(), *result);
                    if let Err(raised) = Self::end_with(this, &value) {
                        drop(value);
                        clear(result);
                        no_stop(attached(), raised).restore(attached());
                        return ffi::PySendResult::PYGEN_ERROR;
                    }
                }
            }
            sent
        }
    }

    /// Raises in the coroutine within; null where that ended it.
    unsafe fn throw(this: *mut Self, args: Object) -> Object {
        // SAFETY: as in `send`.
        unsafe {
            let py = attached();
            match (*this).stage {
                // What has not begun ends by it: no breaker is asked, and none is told.
                Stage::Created | Stage::Suspended => (*this).stage = Stage::Running,
                Stage::Running | Stage::Ended => {
                    Self::refuse(this);
                    return null_mut();
                }
            }
            let throw = ffi::PyObject_GetAttr((*this).inner, intern!(py, "throw").as_ptr());
            let yielded = if throw.is_null() {
                throw
            } else {
                calling::call_with(throw, args, null_mut())
            };
            ffi::Py_XDECREF(throw);
            if !yielded.is_null() {
                (*this).stage = Stage::Suspended;
            } else if ffi::PyErr_ExceptionMatches(ffi::PyExc_StopIteration) != 0 {
                Self::end_with_stop(this);
            } else {
                Self::end_with_error(this);
            }
            yielded
        }
    }

    /// The coroutine within returned from a `throw`, whose `StopIteration` is raised now.
    unsafe fn end_with_stop(this: *mut Self) {
        // SAFETY: as in `send`.
        unsafe {
            let py = attached();
            let Some(stop) = PyErr::take(py) else { return };
            let judged = match stop.value(py).getattr(intern!(py, "value")) {
                Ok(value) => Self::end_with(this, &value),
                Err(error) => Err(error),
            };
            let raised = judged.map_err(|raised| no_stop(py, raised));
            raised.err().unwrap_or(stop).restore(py);
        }
    }

    /// Ends an idle coroutine. False where the coroutine within raised on that.
    unsafe fn close(this: *mut Self) -> bool {
        // SAFETY: as in `send`.
        unsafe {
            match (*this).stage {
                Stage::Ended => return true,
                Stage::Running => {
                    Self::refuse(this);
                    return false;
                }
                Stage::Created | Stage::Suspended => (*this).stage = Stage::Running,
            }
            let py = attached();
            let inner = Bound::from_borrowed_ptr(py, (*this).inner);
            let close = inner.getattr(intern!(py, "close"));
            let closed = close.and_then(|close| calling::call(&close, []));
            drop(inner);
            if let Err(raised) = closed {
                raised.restore(py);
                Self::end_with_error(this);
                return false;
            }
            Self::end(this, Outcome::Cancelled);
            true
        }
    }

    unsafe fn refuse(this: *mut Self) {
        // SAFETY: a plain field.
        if unsafe { (*this).stage } == Stage::Running {
            raise(Kind::Value, c"coroutine already executing");
        } else {
            raise(Kind::Runtime, c"cannot reuse already awaited coroutine");
        }
    }

    unsafe fn end_with(this: *mut Self, result: &Bound<'_, PyAny>) -> PyResult<()> {
        // SAFETY: as in `send`.
        unsafe {
            let (outcome, judged) = Self::breaker(this).judge().result(result);
            Self::end(this, outcome);
            judged
        }
    }

    /// Ends while an exception is raised, which stays.
    unsafe fn end_with_error(this: *mut Self) {
        // SAFETY: as in `send`.
        unsafe {
            let outcome = match (*this).permit {
                Some(_) => judge_raised(attached(), Self::breaker(this)),
                None => Outcome::Ignored,
            };
            Self::end(this, outcome);
            // A coroutine raises none, so it is the judge's.
            if ffi::PyErr_ExceptionMatches(ffi::PyExc_StopIteration) != 0
                && let Some(raised) = PyErr::take(attached())
            {
                no_stop(attached(), raised).restore(attached());
            }
        }
    }

    unsafe fn end(this: *mut Self, outcome: Outcome) {
        // SAFETY: as in `send`. What is let go may run Python, which finds it ended.
        unsafe {
            (*this).stage = Stage::Ended;
            if let Some(permit) = (*this).permit.take() {
                Self::breaker(this).record(permit, (*this).generation, outcome);
            }
            clear(&raw mut (*this).inner);
        }
    }

    /// Ends what nobody can await any more. One that has not begun is left to the coroutine within,
    /// which warns that it was never awaited.
    unsafe fn give_up(this: *mut Self) {
        // SAFETY: called when the object is freed.
        unsafe {
            if (*this).stage == Stage::Suspended {
                let py = attached();
                let raised = PyErr::take(py);
                if !Self::close(this) {
                    ffi::PyErr_WriteUnraisable((*this).function);
                }
                if let Some(raised) = raised {
                    raised.restore(py);
                }
            }
        }
    }
}

unsafe extern "C" fn coroutine_am_send(
    slf: Object,
    value: Object,
    result: *mut Object,
) -> ffi::PySendResult {
    // SAFETY: called by Python, on an object of this type.
    shielded(ffi::PySendResult::PYGEN_ERROR, || unsafe {
        Coroutine::send(slf.cast(), value, result)
    })
}

unsafe extern "C" fn coroutine_send(slf: Object, value: Object) -> Object {
    // SAFETY: called by Python, on an object of this type.
    shielded(null_mut(), || unsafe {
        step(slf, value, |result| {
            let class = ffi::PyExc_StopIteration;
            let none = null_mut::<ffi::PyObject>();
            let stop = ffi::PyObject_CallFunctionObjArgs(class, result, none);
            ffi::Py_DECREF(result);
            if !stop.is_null() {
                ffi::PyErr_SetObject(class, stop);
                ffi::Py_DECREF(stop);
            }
        })
    })
}

unsafe extern "C" fn coroutine_next(slf: Object) -> Object {
    // SAFETY: called by Python, on an object of this type.
    shielded(null_mut(), || unsafe {
        step(slf, ffi::Py_None(), |result| {
            if result == ffi::Py_None() {
                // Nothing raised says that it ended with nothing.
                ffi::Py_DECREF(result);
            } else {
                stop(slf.cast(), result);
            }
        })
    })
}

unsafe fn step(slf: Object, value: Object, stop: impl FnOnce(Object)) -> Object {
    // SAFETY: called by slots.
    unsafe {
        let mut result = null_mut();
        match Coroutine::send(slf.cast(), value, &raw mut result) {
            ffi::PySendResult::PYGEN_NEXT => result,
            ffi::PySendResult::PYGEN_ERROR => null_mut(),
            ffi::PySendResult::PYGEN_RETURN => {
                stop(result);
                null_mut()
            }
        }
    }
}

/// A `StopIteration` to use again, that nobody else has; from CPython 3.12 on each `await` of a
/// coroutine that is not Python's own ends by one.
static SPARE_STOP: AtomicPtr<ffi::PyObject> = AtomicPtr::new(null_mut());

/// What gives a `StopIteration` its value, found once: to look it up for each costs twice as much.
struct Stop {
    value: Setter,
    args: Setter,
    no_args: Py<PyTuple>,
}

struct Setter {
    descriptor: Py<PyAny>,
    set: ffi::descrsetfunc,
}

impl Setter {
    fn of(descriptor: &Bound<'_, PyAny>) -> Self {
        // SAFETY: a slot of this name holds a function of this type, and what can be written has
        // one.
        let set = unsafe {
            let set = ffi::PyType_GetSlot(descriptor.get_type_ptr(), ffi::Py_tp_descr_set);
            std::mem::transmute::<*mut c_void, Option<ffi::descrsetfunc>>(set)
        };
        Self {
            descriptor: descriptor.clone().unbind(),
            set: set.expect("the parts of a StopIteration can be written"),
        }
    }

    unsafe fn set(&self, stop: Object, value: Object) -> bool {
        // SAFETY: called by slots, with a `StopIteration`.
        unsafe { (self.set)(self.descriptor.as_ptr(), stop, value) == 0 }
    }
}

impl Stop {
    fn new(class: &Bound<'_, PyType>) -> PyResult<Self> {
        Ok(Self {
            value: Setter::of(&class.getattr("value")?),
            args: Setter::of(&class.getattr("args")?),
            no_args: PyTuple::empty(class.py()).unbind(),
        })
    }

    unsafe fn get<'a>() -> &'a Self {
        // SAFETY: called by slots.
        let this = STOP.get(unsafe { attached() });
        this.expect("found when the module was made")
    }

    /// Makes it one that carries this value, as Python makes it.
    unsafe fn fill(stop: Object, value: Object) -> bool {
        // SAFETY: called by slots, with a `StopIteration`; the tuple takes a reference of its own.
        unsafe {
            let args = ffi::PyTuple_New(1);
            if args.is_null() {
                return false;
            }
            ffi::PyTuple_SetItem(args, 0, ffi::Py_NewRef(value));
            let this = Self::get();
            let filled = this.value.set(stop, value) && this.args.set(stop, args);
            ffi::Py_DECREF(args);
            filled
        }
    }

    unsafe fn empty(stop: Object) -> bool {
        // SAFETY: called by slots, with a `StopIteration`.
        unsafe {
            let this = Self::get();
            this.value.set(stop, ffi::Py_None()) && this.args.set(stop, this.no_args.as_ptr())
        }
    }
}

/// Raises a `StopIteration` that carries this value, and takes it.
unsafe fn stop(this: *mut Coroutine, value: Object) {
    // SAFETY: called by slots, with an owned reference.
    unsafe {
        let none = null_mut::<ffi::PyObject>();
        let mut stop = SPARE_STOP.swap(null_mut(), Ordering::Relaxed);
        if stop.is_null() {
            stop = ffi::PyObject_CallFunctionObjArgs(ffi::PyExc_StopIteration, none);
        }
        if stop.is_null() || !Stop::fill(stop, value) {
            ffi::Py_XDECREF(stop);
        } else {
            (*this).stop = ffi::Py_NewRef(stop);
            ffi::PyErr_Restore(ffi::Py_NewRef(ffi::PyExc_StopIteration), stop, none);
        }
        ffi::Py_DECREF(value);
    }
}

/// Keeps the coroutine's `StopIteration` for another, if nobody else has it or saw it.
unsafe fn spare(this: *mut Coroutine) {
    // SAFETY: called when the object is freed.
    unsafe {
        let stop = ptr::replace(&raw mut (*this).stop, null_mut());
        if stop.is_null() {
            return;
        }
        let traceback = ffi::PyException_GetTraceback(stop);
        let context = ffi::PyException_GetContext(stop);
        let is_fresh = traceback.is_null() && context.is_null() && ffi::Py_REFCNT(stop) == 1;
        ffi::Py_XDECREF(traceback);
        ffi::Py_XDECREF(context);
        let other = if is_fresh && Stop::empty(stop) {
            SPARE_STOP.swap(stop, Ordering::Relaxed)
        } else {
            stop
        };
        ffi::Py_XDECREF(other);
    }
}

unsafe extern "C" fn coroutine_throw(slf: Object, args: Object) -> Object {
    // SAFETY: called by Python, on an object of this type.
    shielded(null_mut(), || unsafe { Coroutine::throw(slf.cast(), args) })
}

unsafe extern "C" fn coroutine_close(slf: Object, _: Object) -> Object {
    // SAFETY: called by Python, on an object of this type.
    shielded(null_mut(), || unsafe {
        if Coroutine::close(slf.cast()) {
            ffi::Py_NewRef(ffi::Py_None())
        } else {
            null_mut()
        }
    })
}

/// What `await` steps through. While it waits for something it is somebody's already, whose result
/// another would take.
unsafe extern "C" fn coroutine_await(slf: Object) -> Object {
    // SAFETY: called by Python, on an object of this type.
    unsafe {
        if (*slf.cast::<Coroutine>()).stage == Stage::Suspended {
            raise(Kind::Runtime, c"coroutine is being awaited already");
            return null_mut();
        }
        itself(slf)
    }
}

unsafe extern "C" fn itself(slf: Object) -> Object {
    // SAFETY: called by Python.
    unsafe { ffi::Py_NewRef(slf) }
}

/// Beside its own methods it is the coroutine within, so that stacks and names are those of the
/// function that was decorated, and after its end what an ended coroutine is.
unsafe extern "C" fn coroutine_attribute(slf: Object, name: Object) -> Object {
    // SAFETY: called by Python, on an object of this type.
    unsafe {
        let own = ffi::PyObject_GenericGetAttr(slf, name);
        if !own.is_null() || ffi::PyErr_ExceptionMatches(ffi::PyExc_AttributeError) == 0 {
            return own;
        }
        let this = slf.cast::<Coroutine>();
        if !(*this).inner.is_null() {
            ffi::PyErr_Clear();
            let inner = ffi::Py_NewRef((*this).inner);
            let found = ffi::PyObject_GetAttr(inner, name);
            ffi::Py_DECREF(inner);
            return found;
        }
        let is = |known: &CStr| ffi::PyUnicode_CompareWithASCIIString(name, known.as_ptr()) == 0;
        let of_function = [
            (c"__name__", c"__name__"),
            (c"__qualname__", c"__qualname__"),
            (c"cr_code", c"__code__"),
        ];
        if let Some((_, there)) = of_function.into_iter().find(|(here, _)| is(here)) {
            ffi::PyErr_Clear();
            return ffi::PyObject_GetAttrString((*this).function, there.as_ptr());
        }
        if is(c"cr_running") || is(c"cr_suspended") {
            ffi::PyErr_Clear();
            return ffi::PyBool_FromLong(0);
        }
        if is(c"cr_frame") || is(c"cr_await") || is(c"cr_origin") {
            ffi::PyErr_Clear();
            return ffi::Py_NewRef(ffi::Py_None());
        }
        null_mut()
    }
}

/// `isinstance` and `inspect` take it for the coroutine that it stands for.
unsafe extern "C" fn coroutine_class(_: Object, _: *mut c_void) -> Object {
    // SAFETY: called by Python.
    unsafe {
        let py = attached();
        let types = py.import(intern!(py, "types"));
        hand_over(
            py,
            types.and_then(|types| types.getattr(intern!(py, "CoroutineType"))),
        )
    }
}

unsafe extern "C" fn coroutine_repr(slf: Object) -> Object {
    // SAFETY: called by Python, on an object of this type.
    unsafe {
        let name = ffi::PyObject_GetAttrString(slf, c"__qualname__".as_ptr());
        if name.is_null() {
            return name;
        }
        let format = c"<coroutine object %S at %p>".as_ptr();
        let shown = ffi::PyUnicode_FromFormat(format, name, slf);
        ffi::Py_DECREF(name);
        shown
    }
}

unsafe extern "C" fn coroutine_traverse(
    slf: Object,
    visitor: ffi::visitproc,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: called by the collector, on an object of this type.
    unsafe {
        let class = ffi::Py_TYPE(slf).cast();
        let this = slf.cast::<Coroutine>();
        let fields = [class, (*this).function, (*this).inner, (*this).stop];
        visit(&fields, visitor, argument)
    }
}

unsafe extern "C" fn coroutine_free(slf: Object) {
    // SAFETY: called by Python once nobody has a reference to it.
    shielded((), || unsafe {
        ffi::PyObject_GC_UnTrack(slf.cast());
        let this = slf.cast::<Coroutine>();
        if !(*this).weak_references.is_null() {
            ffi::PyObject_ClearWeakRefs(slf);
        }
        Coroutine::give_up(this);
        spare(this);
        clear(&raw mut (*this).inner);
        // It borrows from what the function keeps alive.
        ptr::drop_in_place(&raw mut (*this).permit);
        clear(&raw mut (*this).function);
        free(slf);
    });
}

fn coroutine_type(py: Python<'_>) -> PyResult<Bound<'_, PyType>> {
    let members = [
        offset(
            c"__weaklistoffset__",
            offset_of!(Coroutine, weak_references),
        ),
        ffi::PyMemberDef::default(),
    ];
    let methods = [
        method(c"send", ffi::METH_O, coroutine_send),
        method(c"throw", ffi::METH_VARARGS, coroutine_throw),
        method(c"close", ffi::METH_NOARGS, coroutine_close),
        ffi::PyMethodDef::zeroed(),
    ];
    let properties = [
        ffi::PyGetSetDef {
            name: c"__class__".as_ptr(),
            get: Some(coroutine_class),
            ..ffi::PyGetSetDef::default()
        },
        ffi::PyGetSetDef::default(),
    ];
    let slots = vec![
        slot(ffi::Py_am_send, coroutine_am_send as *mut c_void),
        slot(ffi::Py_am_await, coroutine_await as *mut c_void),
        slot(ffi::Py_tp_iter, itself as *mut c_void),
        slot(ffi::Py_tp_iternext, coroutine_next as *mut c_void),
        slot(ffi::Py_tp_getattro, coroutine_attribute as *mut c_void),
        slot(ffi::Py_tp_repr, coroutine_repr as *mut c_void),
        slot(ffi::Py_tp_traverse, coroutine_traverse as *mut c_void),
        slot(ffi::Py_tp_dealloc, coroutine_free as *mut c_void),
        slot(ffi::Py_tp_members, kept(members)),
        slot(ffi::Py_tp_methods, kept(methods)),
        slot(ffi::Py_tp_getset, kept(properties)),
    ];
    new_type::<Coroutine>(py, c"kailash._native.GuardedCoroutine", 0, slots)
}

fn new_type<'py, T>(
    py: Python<'py>,
    name: &CStr,
    flags: c_ulong,
    mut slots: Vec<ffi::PyType_Slot>,
) -> PyResult<Bound<'py, PyType>> {
    slots.push(slot(0, null_mut()));
    let flags = flags
        | ffi::Py_TPFLAGS_DEFAULT
        | ffi::Py_TPFLAGS_HAVE_GC
        | ffi::Py_TPFLAGS_DISALLOW_INSTANTIATION
        | ffi::Py_TPFLAGS_IMMUTABLETYPE;
    let mut spec = ffi::PyType_Spec {
        name: name.as_ptr(),
        basicsize: c_int::try_from(size_of::<T>()).expect("a few dozen bytes"),
        itemsize: 0,
        flags: u32::try_from(flags).expect("flags are 32 bits"),
        slots: slots.as_mut_ptr(),
    };
    // SAFETY: the slots are functions of the kinds that they stand for, and tables that stay.
    unsafe {
        let made = Bound::from_owned_ptr_or_err(py, ffi::PyType_FromSpec(&raw mut spec))?;
        Ok(made.cast_into::<PyType>()?)
    }
}

fn slot(slot: c_int, pfunc: *mut c_void) -> ffi::PyType_Slot {
    ffi::PyType_Slot { slot, pfunc }
}

fn offset(name: &CStr, at: usize) -> ffi::PyMemberDef {
    ffi::PyMemberDef {
        name: name.as_ptr(),
        type_code: ffi::Py_T_PYSSIZET,
        offset: ffi::Py_ssize_t::try_from(at).expect("a few dozen bytes"),
        flags: ffi::Py_READONLY,
        doc: ptr::null(),
    }
}

fn method(name: &'static CStr, flags: c_int, function: ffi::PyCFunction) -> ffi::PyMethodDef {
    ffi::PyMethodDef {
        ml_name: name.as_ptr(),
        ml_meth: ffi::PyMethodDefPointer {
            PyCFunction: function,
        },
        ml_flags: flags,
        ml_doc: ptr::null(),
    }
}

/// A table that the type points to for ever.
fn kept<T, const N: usize>(table: [T; N]) -> *mut c_void {
    ptr::from_mut(Box::leak(Box::new(table))).cast()
}
