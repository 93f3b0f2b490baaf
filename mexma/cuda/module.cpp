// The Python binding: buffers in, buffers out; the interpreter's lock is released while the GPU computes.

#include "../native/binding.hpp"

#include <cstring>
#include <vector>

#include "engine.hpp"

namespace {

using namespace mexma;
using cuda::Engine;

constexpr const char* CAPSULE = "mexma.cuda.engine";

Engine& engine_of(PyObject* capsule) {
  auto* engine = static_cast<Engine*>(PyCapsule_GetPointer(capsule, CAPSULE));
  if (!engine) throw std::bad_exception();
  return *engine;
}

void destroy(PyObject* capsule) { delete static_cast<Engine*>(PyCapsule_GetPointer(capsule, CAPSULE)); }

// What `body` does without the interpreter's lock.
template <class F>
void unlocked(F&& body) {
  std::exception_ptr failure;
  Py_BEGIN_ALLOW_THREADS
  try {
    body();
  } catch (...) {
    failure = std::current_exception();
  }
  Py_END_ALLOW_THREADS
  if (failure) std::rethrow_exception(failure);
}

PyObject* create(PyObject*, PyObject* arguments) {
  return guarded([&]() -> PyObject* {
    cuda::Shape shape{};
    cuda::Paths paths;
    const char *source, *driver, *compiler, *products;
    int mean, normalise;
    if (!PyArg_ParseTuple(arguments, "iiiiifppssss", &shape.hidden, &shape.heads, &shape.intermediate, &shape.layers, &shape.places, &shape.norm_eps, &mean,
                          &normalise, &source, &driver, &compiler, &products))
      return nullptr;
    shape.mean = mean, shape.normalise = normalise;
    paths = {driver, compiler, products};
    std::unique_ptr<Engine> engine;
    unlocked([&] { engine = std::make_unique<Engine>(shape, source, paths); });
    PyObject* capsule = PyCapsule_New(engine.get(), CAPSULE, destroy);
    if (capsule) engine.release();
    return capsule;
  });
}

PyObject* device(PyObject*, PyObject* capsule) {
  return guarded([&]() -> PyObject* { return PyUnicode_FromString(engine_of(capsule).device().c_str()); });
}

PyObject* set_table(PyObject*, PyObject* arguments) {
  return guarded([&]() -> PyObject* {
    PyObject *capsule, *values;
    long long rows;
    if (!PyArg_ParseTuple(arguments, "OOL", &capsule, &values, &rows)) return nullptr;
    const Buffer buffer(values, false, -1);
    Engine& engine = engine_of(capsule);
    unlocked([&] { engine.set_table(buffer.as<void>(), size_t(buffer.bytes()), rows); });
    Py_RETURN_NONE;
  });
}

PyObject* set_vector(PyObject*, PyObject* arguments) {
  return guarded([&]() -> PyObject* {
    PyObject *capsule, *values;
    int layer, which;
    if (!PyArg_ParseTuple(arguments, "OiiO", &capsule, &layer, &which, &values)) return nullptr;
    const Buffer buffer(values, false, -1);
    Engine& engine = engine_of(capsule);
    unlocked([&] { engine.set_vector(layer, which, buffer.as<void>(), size_t(buffer.bytes())); });
    Py_RETURN_NONE;
  });
}

PyObject* set_matrix(PyObject*, PyObject* arguments) {
  return guarded([&]() -> PyObject* {
    PyObject *capsule, *values, *bias;
    int layer, which;
    if (!PyArg_ParseTuple(arguments, "OiiOO", &capsule, &layer, &which, &values, &bias)) return nullptr;
    const Buffer matrix(values, false, -1), offsets(bias, false, -1);
    Engine& engine = engine_of(capsule);
    unlocked([&] { engine.set_matrix(layer, which, matrix.as<void>(), size_t(matrix.bytes()), offsets.as<void>(), size_t(offsets.bytes())); });
    Py_RETURN_NONE;
  });
}

PyObject* run(PyObject*, PyObject* arguments) {
  return guarded([&]() -> PyObject* {
    PyObject *capsule, *ids, *lengths, *vectors, *states;
    if (!PyArg_ParseTuple(arguments, "OOOOO", &capsule, &ids, &lengths, &vectors, &states)) return nullptr;
    Engine& engine = engine_of(capsule);
    const Buffer n(lengths, false, -1);
    if (n.bytes() % 4) throw std::invalid_argument("lengths: expected int32");
    // Copied before anything is checked: somebody else may write to them while the lock is released.
    std::vector<int32_t> own_lengths(size_t(n.bytes()) / 4);
    if (n.bytes()) std::memcpy(own_lengths.data(), n.as<void>(), size_t(n.bytes()));
    int64_t tokens = 0;
    for (const int32_t length : own_lengths) tokens += length;
    if (tokens < 0 || tokens > Engine::MOST_TOKENS)
      throw std::out_of_range("lengths add up to " + std::to_string(tokens) + " tokens; one call takes 0 to " + std::to_string(Engine::MOST_TOKENS));
    const Py_ssize_t hidden = engine.shape().hidden, sequences = Py_ssize_t(own_lengths.size());
    const Buffer i(ids, false, tokens * 8), v(vectors, true, sequences * hidden * 4);
    std::vector<int64_t> own_ids(static_cast<size_t>(tokens));
    if (tokens) std::memcpy(own_ids.data(), i.as<void>(), size_t(tokens) * 8);
    std::unique_ptr<Buffer> s;
    if (states != Py_None) s = std::make_unique<Buffer>(states, true, Py_ssize_t(tokens) * hidden * 2);
    unlocked([&] { engine.run(own_ids.data(), own_lengths.data(), int(sequences), v.as<float>(), s ? s->as<uint16_t>() : nullptr); });
    Py_RETURN_NONE;
  });
}

PyMethodDef methods[] = {
    {"create", create, METH_VARARGS, nullptr},         {"device", device, METH_O, "The GPU's name."},
    {"set_table", set_table, METH_VARARGS, nullptr},   {"set_vector", set_vector, METH_VARARGS, nullptr},
    {"set_matrix", set_matrix, METH_VARARGS, nullptr}, {"run", run, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "mexma.cuda._engine", "See mexma/cuda/__init__.py.", -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__engine() { return PyModule_Create(&definition); }
