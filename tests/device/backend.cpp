// A device that is not the CPU, without hardware: PyTorch's PrivateUse1 over ordinary memory.
//
// Every operator is sent to the CPU kernel, on CPU tensors that share the bytes of the device's. What a card refuses is
// refused here too: a tensor of the CPU beside one of the device, a CPU generator for the device's random numbers, and
// (by PyTorch itself) .numpy(). So what runs here has moved its tensors as CUDA would have asked for.

#include <ATen/EmptyTensor.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/extension.h>

namespace {

using at::Tensor;
using c10::IValue;
using c10::Storage;
using c10::StorageImpl;
using c10::TensorImpl;

constexpr auto kHere = c10::DeviceType::PrivateUse1;
constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);
const c10::Device here(kHere, 0);

// Memory

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes ? c10::alloc_cpu(bytes) : nullptr;
    return {data, data, &c10::free_cpu, here};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

Memory memory;
REGISTER_ALLOCATOR(kHere, &memory);

// The bytes of a storage as another device sees them; they live as long as either storage does.
c10::DataPtr bytes_of(const Storage& storage, c10::Device device) {
  auto drop = [](void* held) { delete static_cast<Storage*>(held); };
  return {storage.mutable_data(), new Storage(storage), drop, device};
}

Storage shared(const Storage& storage, c10::Device device, c10::Allocator* allocator) {
  return c10::make_intrusive<StorageImpl>(
      StorageImpl::use_byte_size_t(), storage.nbytes(), bytes_of(storage, device), allocator, /*resizable=*/true);
}

Tensor tensor_over(Storage storage, c10::DispatchKeySet keys, const Tensor& like) {
  Tensor made = at::detail::make_tensor<TensorImpl>(std::move(storage), keys, like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return made;
}

// Random numbers: a CPU generator within one that says it belongs to the device

struct Random final : c10::GeneratorImpl {
  at::Generator numbers;

  explicit Random(at::Generator numbers) : GeneratorImpl(here, kKeys), numbers(std::move(numbers)) {}
  void set_current_seed(uint64_t seed) override { numbers.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { numbers.set_offset(offset); }
  uint64_t get_offset() const override { return inner()->get_offset(); }
  uint64_t current_seed() const override { return numbers.current_seed(); }
  uint64_t seed() override { return numbers.seed(); }
  void set_state(const TensorImpl& state) override { inner()->set_state(state); }
  c10::intrusive_ptr<TensorImpl> get_state() const override { return inner()->get_state(); }

 private:
  c10::GeneratorImpl* inner() const { return numbers.unsafeGetGeneratorImpl(); }
  GeneratorImpl* clone_impl() const override { return new Random(numbers.clone()); }
};

at::Generator new_generator() {
  return at::make_generator<Random>(at::detail::createCPUGenerator());
}

const at::Generator& default_generator() {
  static const at::Generator generator = new_generator();
  return generator;
}

// What PyTorch asks of every device

struct Guard final : c10::impl::NoOpDeviceGuardImpl<kHere> {
  c10::Device exchangeDevice(c10::Device) const override { return here; }
  c10::Device getDevice() const override { return here; }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  void synchronizeDevice(c10::DeviceIndex) const override {}

 private:
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, here); }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  at::Device getDeviceFromPtr(void*) const override { return here; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return default_generator(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return new_generator(); }
  void resizePrivateUse1Bytes(const Storage& storage, size_t bytes) const override {
    at::native::resize_bytes_cpu(storage.unsafeGetStorageImpl(), bytes);
  }
};

// One operator's call on its way to the CPU and back

class Errand {
 public:
  explicit Errand(const c10::FunctionSchema& schema) : schema(schema) {}

  // Put CPU tensors over the same bytes in the place of the device's.
  void go(torch::jit::Stack& stack) {
    const auto& arguments = schema.arguments();
    const size_t first = stack.size() - arguments.size();
    for (size_t i = 0; i < arguments.size(); ++i) {
      const auto* alias = arguments[i].alias_info();
      look(stack[first + i], alias && alias->isWrite());
    }
    TORCH_CHECK(
        !(any_here && on_cpu), "Expected all tensors to be on the same device, but found at least two devices, ", here,
        " and cpu! (an argument of ", schema.name(), ")");
    for (size_t i = 0; i < arguments.size(); ++i) {
      stack[first + i] = sent(std::move(stack[first + i]), *arguments[i].real_type());
    }
  }

  // Put tensors of the device in the place of the CPU's.
  void come_back(torch::jit::Stack& stack) {
    for (const Lent& one : lent) settle(one);
    for (size_t i = stack.size() - schema.returns().size(); i < stack.size(); ++i) {
      IValue& value = stack[i];
      if (value.isTensor()) {
        value = brought(value.toTensor());
      } else if (value.isTensorList()) {
        c10::List<Tensor> tensors;
        for (const Tensor& tensor : value.toTensorVector()) tensors.push_back(brought(tensor));
        value = tensors;
      }
    }
  }

 private:
  struct Lent {
    Tensor ours, cpu;
  };

  const c10::FunctionSchema& schema;
  c10::SmallVector<Lent, 4> lent;
  bool any_here = false, on_cpu = false;

  // As on CUDA: a single number may be on the CPU unless it is written to, and what indexes may be anywhere.
  void look(const IValue& value, bool written) {
    auto one = [&](const Tensor& tensor) {
      if (!tensor.defined()) return;
      any_here |= tensor.device().type() == kHere;
      on_cpu |= tensor.is_cpu() && (tensor.dim() > 0 || written);
    };
    if (value.isTensor()) {
      one(value.toTensor());
    } else if (value.isTensorList()) {
      for (const Tensor& tensor : value.toTensorVector()) one(tensor);
    } else if (value.isOptionalTensorList()) {
      for (const auto& index : value.toOptionalTensorVector()) {
        any_here |= index && index->defined() && index->device().type() == kHere;
      }
    }
  }

  IValue sent(IValue value, const c10::Type& type) {
    if (value.isTensor()) return cpu(value.toTensor());
    if (value.isTensorList()) {
      c10::List<Tensor> tensors;
      for (const Tensor& tensor : value.toTensorVector()) tensors.push_back(cpu(tensor));
      return tensors;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> tensors;
      for (const auto& index : value.toOptionalTensorVector()) {
        tensors.push_back(index ? std::make_optional(cpu(*index)) : std::nullopt);
      }
      return tensors;
    }
    if (value.isDevice()) return c10::Device(c10::kCPU);
    if (value.isGenerator()) return numbers(value.toGenerator());
    if (value.isNone() && wants_generator(type)) return numbers(default_generator());
    return value;
  }

  static bool wants_generator(const c10::Type& type) {
    const auto* optional = type.castRaw<c10::OptionalType>();
    return optional && optional->getElementType()->kind() == c10::TypeKind::GeneratorType;
  }

  static at::Generator numbers(const at::Generator& generator) {
    const auto* random = dynamic_cast<const Random*>(generator.unsafeGetGeneratorImpl());
    TORCH_CHECK(random, "Expected a '", here, "' device type for generator but found '", generator.device(), "'");
    return random->numbers;
  }

  Tensor cpu(const Tensor& tensor) {
    if (!tensor.defined() || tensor.device().type() != kHere) return tensor;
    const Lent* beside = nullptr;  // of the same storage, so that the kernel sees the overlap
    for (const Lent& one : lent) {
      if (one.ours.is_same(tensor)) return one.cpu;
      if (one.ours.storage().is_alias_of(tensor.storage())) beside = &one;
    }
    Storage storage = beside ? beside->cpu.storage() : shared(tensor.storage(), c10::kCPU, c10::GetCPUAllocator());
    Tensor made = tensor_over(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor);
    if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) made.unsafeGetTensorImpl()->set_wrapped_number(true);
    lent.push_back({tensor, made});
    return made;
  }

  // A kernel may have given its output another shape, and more bytes than it had.
  static void settle(const Lent& one) {
    StorageImpl* ours = one.ours.storage().unsafeGetStorageImpl();
    if (one.cpu.storage().data() != ours->data()) {
      ours->set_data_ptr_noswap(bytes_of(one.cpu.storage(), here));
      ours->set_nbytes(one.cpu.storage().nbytes());
    }
    if (one.cpu.sizes() != one.ours.sizes() || one.cpu.strides() != one.ours.strides()) {
      one.ours.unsafeGetTensorImpl()->set_sizes_and_strides(
          one.cpu.sizes(), one.cpu.strides(), one.cpu.storage_offset());
    }
  }

  // What an operator returns is an argument itself (in place, out=), a view of one, or new.
  Tensor brought(const Tensor& result) {
    if (!result.defined() || !result.is_cpu()) return result;
    for (const Lent& one : lent) {
      if (one.cpu.is_same(result)) return one.ours;
    }
    for (const Lent& one : lent) {
      if (one.cpu.storage().is_alias_of(result.storage())) return tensor_over(one.ours.storage(), kKeys, result);
    }
    return tensor_over(shared(result.storage(), here, &memory), kKeys, result);
  }
};

void to_the_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Errand errand(op.schema());
  errand.go(*stack);
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  errand.come_back(*stack);
}

// What cannot be sent: making a tensor here, and copying from one device to the other

Tensor empty(
    at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>,
    std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, kKeys, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(
    at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, kKeys, c10::dtype_or_default(dtype));
}

Tensor on_the_cpu(const Tensor& tensor) {
  if (tensor.is_cpu()) return tensor;
  Storage storage = shared(tensor.storage(), c10::kCPU, c10::GetCPUAllocator());
  return tensor_over(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor);
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  on_the_cpu(to).copy_(on_the_cpu(from));
  return to;
}

// CUDA counts whole numbers too, the CPU does not.
Tensor histc(const Tensor& tensor, int64_t bins, const at::Scalar& least, const at::Scalar& most) {
  Tensor values = on_the_cpu(tensor);
  if (at::isIntegralType(values.scalar_type(), /*includeBool=*/false)) values = values.to(at::kDouble);
  Tensor counts = at::histc(values, bins, least, most).to(tensor.scalar_type());
  return tensor_over(shared(counts.storage(), here, &memory), kKeys, counts);
}

// `parameter.data = moved`, by which modules move, wants to know whether the two are of one kind. PyTorch has a list of
// devices for which they are, CUDA among them, and asks the others.
bool compatible(const Tensor& one, const Tensor& other) {
  return one.layout() == at::kStrided && other.layout() == at::kStrided;
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&to_the_cpu>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("histc", &histc);
  m.impl("_has_compatible_shallow_copy_type", &compatible);
  // The storage stays the device's own.
  m.impl("resize_", &at::native::resize_);
  m.impl("set_.source_Storage", &at::native::set_);
  m.impl("set_.source_Storage_storage_offset", &at::native::set_storage_cpu_);
  m.impl("set_.source_Tensor", &at::native::set_tensor_);
  // Views could be sent too; these are spared the way, since everything is made of them.
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
}

// bitsandbytes' CPU kernels are faster than its plain ones, which take any device. Its product with a 4-bit matrix
// stays the plain one: the CPU's wants the matrix packed.
TORCH_LIBRARY_IMPL(bitsandbytes, PrivateUse1, m) {
  for (const char* name : {"quantize_4bit", "dequantize_4bit", "quantize_blockwise", "dequantize_blockwise"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&to_the_cpu>());
  }
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  static Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
  m.def("default_generator", [] { return default_generator(); });
}
