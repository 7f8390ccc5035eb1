# Finds the CUTLASS headers and sets ernie_cutlass_include. Looked for in this order:
#   1. ERNIE_CUTLASS_DIR (a define or an environment variable): a folder with include/cutlass/
#   2. an installed nvidia-cutlass Python package
#   3. third_party/cutlass/, where an earlier build unpacked the wheel
#   4. the nvidia-cutlass wheel, fetched by pip without its dependencies into third_party/cutlass/
set(cutlass_version 4.2.0.0)
set(cutlass_local ${CMAKE_CURRENT_LIST_DIR}/cutlass)
find_package(Python REQUIRED COMPONENTS Interpreter)

set(ERNIE_CUTLASS_DIR "$ENV{ERNIE_CUTLASS_DIR}" CACHE PATH "Folder that holds include/cutlass")
set(cutlass_in_package cutlass_library/source/include)

function(ernie_find_cutlass)
  if(ERNIE_CUTLASS_DIR)
    if(NOT EXISTS ${ERNIE_CUTLASS_DIR}/include/cutlass/cutlass.h)
      message(FATAL_ERROR "ERNIE_CUTLASS_DIR: no include/cutlass/cutlass.h in ${ERNIE_CUTLASS_DIR}")
    endif()
    set(ernie_cutlass_include ${ERNIE_CUTLASS_DIR}/include PARENT_SCOPE)
    return()
  endif()

  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
      "import importlib.util as u; s = u.find_spec('cutlass_library'); print(s.submodule_search_locations[0] if s else '')"
    OUTPUT_VARIABLE package OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(package AND EXISTS ${package}/source/include/cutlass/cutlass.h)
    set(ernie_cutlass_include ${package}/source/include PARENT_SCOPE)
    return()
  endif()

  if(NOT EXISTS ${cutlass_local}/${cutlass_in_package}/cutlass/cutlass.h)
    message(STATUS "ernie_kernels: fetching the CUTLASS headers (nvidia-cutlass ${cutlass_version})")
    execute_process(
      COMMAND ${Python_EXECUTABLE} -m pip install --quiet --no-deps --upgrade
              --target ${cutlass_local} nvidia-cutlass==${cutlass_version}
      RESULT_VARIABLE failed ERROR_VARIABLE why)
    if(failed OR NOT EXISTS ${cutlass_local}/${cutlass_in_package}/cutlass/cutlass.h)
      message(FATAL_ERROR
        "CUTLASS was not found and could not be fetched. Searched: ERNIE_CUTLASS_DIR, the Python "
        "package nvidia-cutlass, ${cutlass_local}. Install it (pip install --no-deps "
        "nvidia-cutlass==${cutlass_version}) or set ERNIE_CUTLASS_DIR. pip said: ${why}")
    endif()
  endif()
  set(ernie_cutlass_include ${cutlass_local}/${cutlass_in_package} PARENT_SCOPE)
endfunction()

ernie_find_cutlass()
message(STATUS "ernie_kernels: CUTLASS headers from ${ernie_cutlass_include}")
