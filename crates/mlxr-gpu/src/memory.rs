//! How much memory an adapter has. wgpu does not say; Vulkan and Metal do.

use mlxr_tensor::DeviceMemory;

/// The memory of an adapter; `None` where the driver does not tell.
pub(crate) fn of(adapter: &wgpu::Adapter) -> Option<DeviceMemory> {
    match adapter.get_info().backend {
        #[cfg(not(target_vendor = "apple"))]
        wgpu::Backend::Vulkan => vulkan(adapter),
        #[cfg(target_vendor = "apple")]
        wgpu::Backend::Metal => metal(adapter),
        _ => None,
    }
}

/// The largest heap of the device's own. What of it is usable comes from `VK_EXT_memory_budget`, which knows what other
/// programs take; without it nine tenths are.
#[cfg(not(target_vendor = "apple"))]
fn vulkan(adapter: &wgpu::Adapter) -> Option<DeviceMemory> {
    use ash::vk;

    let is_shared = !matches!(adapter.get_info().device_type, wgpu::DeviceType::DiscreteGpu);
    // SAFETY: the handle is only read from, and nothing made from it outlives this function.
    let adapter = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let instance = adapter.shared_instance();
    let device = adapter.raw_physical_device();
    let capabilities = adapter.physical_device_capabilities();
    let has_budget = capabilities.supports_extension(ash::ext::memory_budget::NAME);
    let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
    let mut properties = vk::PhysicalDeviceMemoryProperties2::default();
    let has_query =
        instance.instance_api_version().min(capabilities.properties().api_version) >= vk::API_VERSION_1_1;
    if has_query {
        if has_budget {
            properties = properties.push_next(&mut budget);
        }
        // SAFETY: both know Vulkan 1.1, which has this function, and the device supports what is chained.
        unsafe { instance.raw_instance().get_physical_device_memory_properties2(device, &mut properties) };
    } else {
        // SAFETY: the device belongs to this instance.
        properties.memory_properties =
            unsafe { instance.raw_instance().get_physical_device_memory_properties(device) };
    }
    let heaps = properties.memory_properties.memory_heaps_as_slice().to_vec();
    let own = heaps.iter().enumerate().filter(|(_, h)| h.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL));
    let (index, heap) = own.max_by_key(|(_, heap)| heap.size)?;
    let usable_bytes = match budget.heap_budget[index] {
        0 => heap.size / 10 * 9,
        bytes => bytes.min(heap.size),
    };
    Some(DeviceMemory { total_bytes: heap.size, usable_bytes, is_shared })
}

/// What Metal recommends to stay below, which on Apple Silicon is a part of the machine's memory.
#[cfg(target_vendor = "apple")]
fn metal(adapter: &wgpu::Adapter) -> Option<DeviceMemory> {
    use objc2_metal::MTLDevice;

    // SAFETY: the handle is only read from, and nothing made from it outlives this function.
    let adapter = unsafe { adapter.as_hal::<wgpu::hal::api::Metal>() }?;
    let device = adapter.raw_device();
    let bytes = device.recommendedMaxWorkingSetSize();
    Some(DeviceMemory { total_bytes: bytes, usable_bytes: bytes, is_shared: device.hasUnifiedMemory() })
}
