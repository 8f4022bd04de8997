# Narrows llama.cpp's default target to llama-server and what it links against.
#
# Passed as CMAKE_PROJECT_TOP_LEVEL_INCLUDES, because the registry's package always builds the
# default target, and llama.cpp has no option that leaves out the thirty tools beside the server.

function(exclude_targets_of folder)
  get_property(targets DIRECTORY "${folder}" PROPERTY BUILDSYSTEM_TARGETS)
  foreach(target IN LISTS targets)
    if(NOT target STREQUAL "llama-server")
      set_property(TARGET "${target}" PROPERTY EXCLUDE_FROM_ALL TRUE)
    endif()
  endforeach()
  get_property(children DIRECTORY "${folder}" PROPERTY SUBDIRECTORIES)
  foreach(child IN LISTS children)
    exclude_targets_of("${child}")
  endforeach()
endfunction()

cmake_language(DEFER CALL exclude_targets_of "${CMAKE_SOURCE_DIR}")
