/* cmocka with the headers it needs before it. */
#ifndef KVB_TESTS_CM_H
#define KVB_TESTS_CM_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#endif
