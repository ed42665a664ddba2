from mmgroupnet_runtime.cli import main

main()
