// The Python binding: buffers in, buffers out; the interpreter's lock is released while computing.

#include "binding.hpp"

#include <cstring>
#include <string>
#include <vector>

#include "engine.hpp"

namespace {

using namespace mexma;

constexpr const char* CAPSULE = "mexma.native.engine";

struct Handle {
  std::unique_ptr<Engine> engine;
  Py_buffer codes{}, scales{};  // the table lies in the artifact's file, which is kept open by these
};

Handle* handle_of(PyObject* capsule) {
  auto* handle = static_cast<Handle*>(PyCapsule_GetPointer(capsule, CAPSULE));
  if (!handle) throw std::bad_exception();
  return handle;
}

void destroy(PyObject* capsule) {
  auto* handle = static_cast<Handle*>(PyCapsule_GetPointer(capsule, CAPSULE));
  if (!handle) return;
  handle->engine.reset();
  if (handle->codes.obj) PyBuffer_Release(&handle->codes);
  if (handle->scales.obj) PyBuffer_Release(&handle->scales);
  delete handle;
}

PyObject* list_kernels(PyObject*, PyObject*) {
  PyObject* list = PyList_New(0);
  if (!list) return nullptr;
  for (const Kernel* kernel : kernels()) {
    PyObject* item = Py_BuildValue("(ssss)", kernel->name, kernel->arithmetic, missing(*kernel).c_str(), slow(*kernel).c_str());
    if (!item || PyList_Append(list, item)) {
      Py_XDECREF(item);
      Py_DECREF(list);
      return nullptr;
    }
    Py_DECREF(item);
  }
  return list;
}

PyObject* create(PyObject*, PyObject* arguments) {
  return guarded([&]() -> PyObject* {
    const char* name;
    int pooling, head, normalise, threads, piece_tokens;
    Shape shape{};
    if (!PyArg_ParseTuple(arguments, "siiiiiiifpppii", &name, &shape.hidden, &shape.heads, &shape.head_size,
                          &shape.intermediate, &shape.layers, &shape.dim, &shape.places, &shape.norm_eps, &pooling,
                          &head, &normalise, &threads, &piece_tokens))
      return nullptr;
    shape.pooling = Pooling(pooling);
    shape.head = head;
    shape.normalise = normalise;
    for (const Kernel* kernel : kernels()) {
      if (std::string(kernel->name) != name) continue;
      const std::string reason = missing(*kernel);
      if (!reason.empty()) throw std::invalid_argument(std::string(name) + ": " + reason);
      auto handle = std::make_unique<Handle>();
      handle->engine = std::make_unique<Engine>(shape, *kernel, threads, piece_tokens);
      PyObject* capsule = PyCapsule_New(handle.get(), CAPSULE, destroy);
      if (capsule) handle.release();
      return capsule;
    }
    throw std::invalid_argument(std::string("no kernel is called ") + name);
  });
}

PyObject* set_table(PyObject*, PyObject* arguments) {
  return guarded([&]() -> PyObject* {
    PyObject *capsule, *codes, *scales;
    int kind;
    long long rows;
    if (!PyArg_ParseTuple(arguments, "OiOOL", &capsule, &kind, &codes, &scales, &rows)) return nullptr;
    Handle* handle = handle_of(capsule);
    if (kind < 0 || kind > 3 || handle->codes.obj) throw std::invalid_argument("table: unknown kind, or set twice");
    const auto row_bytes = Py_ssize_t(handle->engine->table_columns_bytes(TableKind(kind)));
    const Py_ssize_t row_scales = handle->engine->shape().hidden / 32 * 2;
    const bool scaled = TableKind(kind) == TableKind::four_bits || TableKind(kind) == TableKind::eight_bits;
    if (PyObject_GetBuffer(codes, &handle->codes, PyBUF_SIMPLE)) return nullptr;
    if (scaled && PyObject_GetBuffer(scales, &handle->scales, PyBUF_SIMPLE)) {
      PyBuffer_Release(&handle->codes);
      return nullptr;
    }
    // Divided, since a number of rows that comes from a file may be any, and a product wraps around.
    const auto fits = [&](const Py_buffer& buffer, Py_ssize_t row) { return buffer.len % row == 0 && buffer.len / row == rows; };
    if (rows < 1 || !fits(handle->codes, row_bytes) || (scaled && !fits(handle->scales, row_scales))) {
      PyBuffer_Release(&handle->codes);
      if (scaled) PyBuffer_Release(&handle->scales);
      throw std::invalid_argument("table: sizes do not match the model's shape");
    }
    handle->engine->set_table(TableKind(kind), static_cast<const uint8_t*>(handle->codes.buf),
                              scaled ? static_cast<const uint8_t*>(handle->scales.buf) : nullptr, rows);
    Py_RETURN_NONE;
  });
}

PyObject* set_vector(PyObject*, PyObject* arguments) {
  return guarded([&]() -> PyObject* {
    PyObject *capsule, *values;
    int layer, which;
    if (!PyArg_ParseTuple(arguments, "OiiO", &capsule, &layer, &which, &values)) return nullptr;
    const Buffer buffer(values, false, -1);
    handle_of(capsule)->engine->set_vector(layer, which, buffer.as<void>(), size_t(buffer.bytes()));
    Py_RETURN_NONE;
  });
}

PyObject* set_matrix(PyObject*, PyObject* arguments) {
  return guarded([&]() -> PyObject* {
    PyObject *capsule, *values, *bias;
    int layer, which, k, n;
    if (!PyArg_ParseTuple(arguments, "OiiOiiO", &capsule, &layer, &which, &values, &k, &n, &bias)) return nullptr;
    constexpr int MOST = 1 << 24;  // so that the product cannot overflow; far above any model's
    if (k < 1 || n < 1 || k > MOST || n > MOST) throw std::invalid_argument("matrix: too few or too many rows or columns");
    const Buffer matrix(values, false, Py_ssize_t(k) * n * 4), offsets(bias, false, Py_ssize_t(n) * 4);
    handle_of(capsule)->engine->set_matrix(layer, which, matrix.as<float>(), k, n, offsets.as<float>());
    Py_RETURN_NONE;
  });
}

PyObject* run(PyObject*, PyObject* arguments) {
  return guarded([&]() -> PyObject* {
    PyObject *capsule, *ids, *lengths, *vectors, *states;
    if (!PyArg_ParseTuple(arguments, "OOOOO", &capsule, &ids, &lengths, &vectors, &states)) return nullptr;
    Engine& engine = *handle_of(capsule)->engine;
    const Buffer n(lengths, false, -1);
    // Copied, while the interpreter's lock is held: what was checked is what is computed, though the caller
    // change it meanwhile. And they may lie at any address.
    if (n.bytes() % 4 || n.bytes() / 4 > Engine::MOST_TOKENS) throw std::invalid_argument("lengths: expected int32");
    std::vector<int32_t> own_lengths(size_t(n.bytes()) / 4);
    if (n.bytes()) std::memcpy(own_lengths.data(), n.as<void>(), size_t(n.bytes()));
    const int sequences = int(own_lengths.size());
    int64_t tokens = 0;
    for (const int32_t length : own_lengths) tokens += length;
    if (tokens < 0 || tokens > Engine::MOST_TOKENS)
      throw std::out_of_range("lengths add up to " + std::to_string(tokens) + " tokens; one call takes 0 to " + std::to_string(Engine::MOST_TOKENS));
    const Buffer i(ids, false, tokens * 8), v(vectors, true, Py_ssize_t(sequences) * engine.shape().dim * 4);
    std::vector<int64_t> own_ids(static_cast<size_t>(tokens));
    if (tokens) std::memcpy(own_ids.data(), i.as<void>(), size_t(tokens) * 8);
    std::unique_ptr<Buffer> t;
    if (states != Py_None) t = std::make_unique<Buffer>(states, true, Py_ssize_t(tokens) * engine.shape().hidden * 4);
    std::exception_ptr failure;
    Py_BEGIN_ALLOW_THREADS
    try {
      engine.run(own_ids.data(), own_lengths.data(), sequences, v.as<float>(), t ? t->as<float>() : nullptr);
    } catch (...) {
      failure = std::current_exception();
    }
    Py_END_ALLOW_THREADS
    if (failure) std::rethrow_exception(failure);
    Py_RETURN_NONE;
  });
}

PyMethodDef methods[] = {
    {"kernels", list_kernels, METH_NOARGS, "(name, arithmetic, what is missing for it, why it is slow here) of each kernel, best first."},
    {"create", create, METH_VARARGS, nullptr},
    {"set_table", set_table, METH_VARARGS, nullptr},
    {"set_vector", set_vector, METH_VARARGS, nullptr},
    {"set_matrix", set_matrix, METH_VARARGS, nullptr},
    {"run", run, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "mexma.native._engine", "See mexma/native/__init__.py.", -1, methods,
                          nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__engine() { return PyModule_Create(&definition); }
