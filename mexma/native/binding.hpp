// What the bindings to Python have in common: buffers, and exceptions.
#pragma once

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>

namespace mexma {

// A contiguous buffer of exactly `bytes`, or of any size when `bytes` is negative.
class Buffer {
 public:
  Buffer(PyObject* object, bool writable, Py_ssize_t bytes) {
    if (PyObject_GetBuffer(object, &view_, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE)) throw std::bad_exception();
    if (bytes >= 0 && view_.len != bytes) {
      PyErr_Format(PyExc_ValueError, "expected a buffer of %zd bytes, got %zd", bytes, view_.len);
      PyBuffer_Release(&view_);
      throw std::bad_exception();
    }
  }
  ~Buffer() { PyBuffer_Release(&view_); }
  Buffer(const Buffer&) = delete;
  template <class T>
  T* as() const { return static_cast<T*>(view_.buf); }
  Py_ssize_t bytes() const { return view_.len; }

 private:
  Py_buffer view_;
};

// C++ exceptions become Python's; a bad_exception says that Python's is set already.
template <class F>
PyObject* guarded(F&& body) {
  try {
    return body();
  } catch (const std::bad_exception&) {
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::system_error& error) {  // of threads that could not be started
    PyErr_Format(PyExc_RuntimeError, "the system gives no more threads: %s", error.what());
  } catch (const std::out_of_range& error) {
    PyErr_SetString(PyExc_IndexError, error.what());
  } catch (const std::runtime_error& error) {  // of the machine
    PyErr_SetString(PyExc_RuntimeError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  }
  return nullptr;
}

}  // namespace mexma
