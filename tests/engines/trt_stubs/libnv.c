/* Stands in for libnvinfer, libnvinfer_plugin, libnvonnxparser (8, 10, 11) and libnvparsers (8): what the Python bindings
   want to link to, and nothing behind it. Every factory returns a null pointer, as the real ones may. */
#include <stddef.h>

#define NOTHING(name) void *name(void) { return NULL; }

NOTHING(createInferBuilder_INTERNAL)
NOTHING(createInferRefitter_INTERNAL)
NOTHING(createInferRuntime_INTERNAL)
NOTHING(createNvOnnxParser_INTERNAL)
NOTHING(createNvOnnxParserRefitter_INTERNAL)
NOTHING(getBuilderPluginRegistry)
NOTHING(getNvOnnxParserVersion)
NOTHING(getPluginRegistry)
NOTHING(initLibNvInferPlugins)

/* TensorRT 8's Caffe and UFF parsers, which the bindings of 8.6 still name. */
NOTHING(_ZN11nvuffparser15createUffParserEv)
NOTHING(_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi)
NOTHING(_ZN14nvcaffeparser117createCaffeParserEv)
NOTHING(_ZN14nvcaffeparser123shutdownProtobufLibraryEv)
